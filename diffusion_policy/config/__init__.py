"""The configuration tree. Importing it registers the resolvers that the YAML files use."""

from diffusion_policy.config.resolvers import register_resolvers

register_resolvers()
