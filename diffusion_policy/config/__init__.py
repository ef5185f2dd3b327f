"""The configuration tree. Importing it registers the resolvers that the YAML files use, and bounds
the reading of YAML.
"""

from diffusion_policy.config.resolvers import register_resolvers
from diffusion_policy.config.yaml_files import bound_omegaconf

register_resolvers()
bound_omegaconf()
