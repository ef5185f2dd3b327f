"""The GPT."""

import pytest
import torch
import torch.nn.functional as F

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.bet.libraries.mingpt.model import (
    GPT,
    Block,
    CausalSelfAttention,
    GPT1Config,
    GPTConfig,
)


def config(**changes):
    sizes = {"vocab_size": 7, "block_size": 5, "input_size": 3, "n_layer": 2, "n_head": 2}
    return GPTConfig(**{**sizes, "n_embd": 8, **changes})


def test_the_defaults_are_the_size_of_gpt_1():
    sizes = GPT1Config(vocab_size=10, block_size=4)
    assert (sizes.n_layer, sizes.n_head, sizes.n_embd) == (12, 12, 768)


def test_logits_of_vectors_and_of_tokens():
    logits, loss = GPT(config())(torch.randn(4, 5, 3))
    assert logits.shape == (4, 5, 7)
    assert loss is None
    logits, _ = GPT(config(discrete_input=True))(torch.randint(0, 7, (4, 5)))
    assert logits.shape == (4, 5, 7)


def test_targets_give_the_cross_entropy():
    gpt = GPT(config()).eval()
    x, targets = torch.randn(4, 5, 3), torch.randint(0, 7, (4, 5))
    logits, loss = gpt(x, targets)
    torch.testing.assert_close(loss, F.cross_entropy(logits.transpose(1, 2), targets))


def test_a_step_sees_itself_and_the_past_only():
    gpt = GPT(config()).eval()
    x = torch.randn(1, 5, 3)
    changed = x.clone()
    changed[:, 3] += 1
    difference = (gpt(x)[0] - gpt(changed)[0]).abs().amax(dim=(0, 2))
    assert (difference[:3] == 0).all()
    assert (difference[3:] > 0).all()


def test_a_shorter_sequence_is_the_beginning_of_a_longer_one():
    gpt = GPT(config()).eval()
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(gpt(x[:, :2])[0], gpt(x)[0][:, :2])


def test_attention_is_the_masked_softmax_of_scaled_products():
    attention = CausalSelfAttention(config()).eval()
    x = torch.randn(2, 5, 8)
    heads = [layer(x).view(2, 5, 2, 4).transpose(1, 2) for layer in _qkv(attention)]
    scores = heads[0] @ heads[1].transpose(-2, -1) / 4**0.5
    scores = scores.masked_fill(attention.mask == 0, -torch.inf).softmax(dim=-1)
    expected = attention.proj((scores @ heads[2]).transpose(1, 2).reshape(2, 5, 8))
    torch.testing.assert_close(attention(x), expected)


def _qkv(attention):
    return attention.query, attention.key, attention.value


@pytest.mark.parametrize("name", ["embd_pdrop", "resid_pdrop", "attn_pdrop"])
def test_every_dropout_works_in_training_alone(name):
    none = dict.fromkeys(["embd_pdrop", "resid_pdrop", "attn_pdrop"], 0.0)
    gpt = GPT(config(**none | {name: 0.5}))
    x = torch.randn(2, 5, 3)
    assert not torch.equal(gpt(x)[0], gpt(x)[0])
    gpt.eval()
    assert torch.equal(gpt(x)[0], gpt(x)[0])


def test_the_initial_weights():
    torch.manual_seed(0)
    gpt = GPT(config(n_embd=64))
    for name, param in gpt.named_parameters():
        if "ln" in name and name.endswith("weight"):
            assert torch.equal(param, torch.ones_like(param)), name
        elif name.endswith("bias"):
            assert torch.equal(param, torch.zeros_like(param)), name
        else:
            assert param.std().item() == pytest.approx(0.02, rel=0.15), name


def test_only_weights_of_linear_layers_decay():
    gpt = GPT(config())
    optimizer = gpt.configure_optimizers(1e-3, 0.1, [0.8, 0.9])
    names = {id(p): name for name, p in gpt.named_parameters()}
    groups = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert all(name.endswith("weight") and "ln" not in name for name in groups[0])
    assert sorted(groups[0]) == groups[0]
    assert sorted(groups[1]) == groups[1]
    assert sorted(groups[0] + groups[1]) == sorted(names.values())
    assert {"pos_emb", "tok_emb.bias", "ln_f.weight"} <= set(groups[1])
    assert (optimizer.defaults["lr"], optimizer.defaults["betas"]) == (1e-3, (0.8, 0.9))


def test_an_embedding_of_tokens_does_not_decay():
    gpt = GPT(config(discrete_input=True))
    _, no_decay = gpt.configure_optimizers().param_groups
    assert any(p is gpt.tok_emb.weight for p in no_decay["params"])


def test_published_keys():
    layers = ["ln1", "ln2", "mlp.0", "mlp.2", "attn.key", "attn.query", "attn.value", "attn.proj"]
    expected = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    assert set(Block(config()).state_dict()) == expected | {"attn.mask"}
    assert "head.bias" not in GPT(config()).state_dict()


def test_a_sequence_that_is_too_long_is_refused():
    with pytest.raises(ConfigError, match=r"6 steps.*block_size=5.*horizon"):
        GPT(config())(torch.randn(1, 6, 3))


def test_a_width_that_the_heads_cannot_share_is_refused():
    with pytest.raises(ConfigError, match=r"n_embd is 10; .*multiple of n_head=4"):
        GPT(config(n_embd=10, n_head=4))
