"""Loading in 4 bits and adapting: what is quantised and what is not, gradients after evaluation, adapters, errors."""

import json
import re
import shutil

import bitsandbytes as bnb
import pytest
import torch
import transformers
from bitsandbytes.functional import dequantize_4bit
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny_llava
from tiny_rows import make_row
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from napo.engine import logps, models, packing
from napo.profiles import PROFILES, Lora, Profile, Quantisation
from napo.workshop.files import BadInput

NF4 = Quantisation()
# The 16 values of NF4 (Dettmers et al. 2023, appendix E): the largest gap between neighbours bounds the rounding.
LARGEST_NF4_GAP = 1.0 - 0.6961928009986877


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture
def loaded(folder):
    return models.load(folder, NF4)


@pytest.fixture
def model(loaded):
    return loaded[0]


def make_batch(processor, n=2):
    encoded = [packing.encode(make_row(i), processor, ("chosen", "rejected")) for i in range(n)]
    return packing.collate_plain(encoded, ("chosen", "rejected"))


def on_disk(folder):
    """The file's tensors under the names that the loaded model gives them (transformers renames on saving)."""
    plain = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    assert len(load_file(folder / "model.safetensors")) == len(plain.state_dict())
    return plain.state_dict()


def test_exactly_the_language_models_linear_layers_are_in_4_bits(model):
    four_bit = {name for name, module in model.named_modules() if isinstance(module, bnb.nn.Linear4bit)}
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert four_bit == {name for name in linear if name.startswith("model.language_model.")}
    assert len(four_bit) == 2 * 7
    assert any(name.startswith("model.vision_tower") for name in linear - four_bit)
    assert any(name.startswith("model.multi_modal_projector") for name in linear - four_bit)
    assert "lm_head" in linear - four_bit


def test_quantised_weights_are_near_the_file_and_not_equal(folder, model):
    """Within half the widest gap of NF4 times the block's largest weight; a wrong layout would be far outside."""
    weights = on_disk(folder)
    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            original = weights[name + ".weight"]
            back = dequantize_4bit(module.weight.data, module.weight.quant_state).float()
            assert back.shape == original.shape and module.weight.quant_state.quant_type == "nf4"
            blocks = original.reshape(-1, 64).abs().amax(1, keepdim=True)
            error = (back - original).reshape(-1, 64).abs()
            assert (error <= blocks * (LARGEST_NF4_GAP / 2 + 0.02)).all()  # 0.02: double quantisation of the scales
            assert 0.02 < (error.mean() / original.abs().mean()).item() < 0.15


def test_all_other_weights_are_the_files_bit_for_bit(folder, model):
    weights, compared = on_disk(folder), set()
    for name, parameter in model.named_parameters():
        if not isinstance(parameter, bnb.nn.Params4bit):
            assert torch.equal(parameter.data, weights[name]), name
            compared.add(name.split(".")[1] if name.startswith("model.") else name)
    assert compared == {"vision_tower", "multi_modal_projector", "language_model", "lm_head.weight"}


def test_bare_name_in_the_skip_list_quantises_the_head_which_is_the_trap_avoided_here(folder):
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["vision_tower", "multi_modal_projector"]
    )
    trapped = AutoModelForImageTextToText.from_pretrained(folder, quantization_config=config, dtype=torch.float32)
    assert isinstance(trapped.lm_head, bnb.nn.Linear4bit)
    with pytest.raises(BadInput, match="lm_head quantised to 4 bits"):
        models.check_quantised(trapped)


def test_check_quantised_passes_nf4_and_refuses_full_precision(folder, model):
    models.check_quantised(model)
    plain, _ = models.load(folder, Quantisation(four_bit=False))
    assert not models.four_bit_layers(plain)
    with pytest.raises(BadInput, match="no layer of language_model is in 4 bits"):
        models.check_quantised(plain)


def test_table_counts_every_parameter_once(folder, model):
    weights = on_disk(folder)
    table = {row["part"]: row for row in models.parameter_table(model)}
    assert sum(row["parameters"] for row in table.values()) == sum(w.numel() for w in weights.values())
    in_layers = sum(w.numel() for name, w in weights.items() if "language_model" in name and "proj" in name)
    assert table["language_model"]["in_4_bit"] == in_layers
    assert all(table[part]["in_4_bit"] == 0 for part in ("vision_tower", "multi_modal_projector", "lm_head"))
    adapted = models.parameter_table(models.attach_lora(model, Lora(r=4), seed=0))
    assert sum(row["trainable"] for row in adapted) == sum(4 * sum(s) for s in lora_shapes(weights))


def lora_shapes(weights):
    return [w.shape for name, w in weights.items() if "language_model" in name and "proj" in name]


def test_weights_are_never_repacked_on_a_cpu_with_avx512_bf16(folder, monkeypatch, tmp_path):
    """A machine that has the instructions is played: without the guard the first evaluation repacks the weights."""
    repacked = []
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    monkeypatch.setattr(
        "bitsandbytes.nn.modules._convert_weight_packed_for_cpu", lambda w, s: repacked.append(1) or (w, s)
    )
    model, processor = models.load(folder, NF4)
    assert len(models.four_bit_layers(model)) == 14
    assert not any(layer.support_avx512bf16_for_cpu for layer in models.four_bit_layers(model))
    policy = models.attach_lora(model, Lora(r=2), seed=0)
    policy.save_pretrained(tmp_path)
    fresh = models.load_adapter(models.load(folder, NF4)[0], tmp_path)
    with torch.no_grad():
        for checked in (policy.eval(), fresh):
            assert not any(layer.support_avx512bf16_for_cpu for layer in models.four_bit_layers(checked))
            logps.plain_logps(checked, make_batch(processor))
            with checked.disable_adapter():  # with it these narrow layers are not asked (napo/engine/fused_lora.py)
                logps.plain_logps(checked, make_batch(processor))
        assert not repacked
        models.four_bit_layers(model)[0].support_avx512bf16_for_cpu = True
        with policy.disable_adapter():
            logps.plain_logps(policy, make_batch(processor))
        assert repacked  # so the check above could have failed


def gradients(folder, evaluate_first):
    model, processor = models.load(folder, NF4)
    policy = models.attach_lora(model, Lora(r=4), seed=0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:  # away from zero, so that both halves of the adapter have gradients
                parameter.normal_(0, 0.02, generator=torch.Generator().manual_seed(len(name)))
    batch = make_batch(processor)
    if evaluate_first:
        with torch.no_grad():
            logps.plain_logps(policy.eval(), batch)
            policy.generate(input_ids=batch["input_ids"][:1, :20], max_new_tokens=2, do_sample=False)
    logps.plain_logps(policy.train(), batch).sum().backward()
    return {name: p.grad for name, p in policy.named_parameters() if p.requires_grad}


def test_training_after_evaluation_has_the_same_gradients(folder):
    before, after = gradients(folder, evaluate_first=False), gradients(folder, evaluate_first=True)
    assert all(gradient.norm() > 0 for gradient in before.values())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_gradients_are_those_of_the_dequantised_weights(folder):
    """The same model with its 4-bit layers written out in float32, so without bitsandbytes' backward."""
    model, processor = models.load(folder, NF4)
    plain, _ = models.load(folder, Quantisation(four_bit=False))
    for (name, module), (_, layer) in zip(plain.named_modules(), model.named_modules(), strict=True):
        if isinstance(layer, bnb.nn.Linear4bit):
            module.weight.data = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
            assert module.weight.shape == (layer.out_features, layer.in_features), name
    batch, got = make_batch(processor), []
    for one in (model, plain):
        policy = models.attach_lora(one, Lora(r=4), seed=0)
        logps.plain_logps(policy, batch).sum().backward()
        got.append({name: p.grad for name, p in policy.named_parameters() if p.requires_grad and "lora_B" in name})
    assert got[0].keys() == got[1].keys()
    for name in got[0]:
        assert (got[0][name] - got[1][name]).norm() <= 1e-4 * got[1][name].norm(), name


def test_gradient_checkpointing_changes_nothing(folder):
    got = []
    for checkpointing in (False, True):
        model, processor = models.load(folder, NF4)
        policy = models.attach_lora(model, Lora(r=4), seed=0).train()
        if checkpointing:
            policy.enable_input_require_grads()
            policy.activation_checkpointing_enable({"use_reentrant": False})
        logps.plain_logps(policy, make_batch(processor)).sum().backward()
        got.append({name: p.grad for name, p in policy.named_parameters() if p.requires_grad and "lora_B" in name})
    assert all((got[0][name] - got[1][name]).norm() <= 1e-5 * got[0][name].norm() for name in got[0])
    assert all(g.norm() > 0 for g in got[1].values())


def test_fresh_adapter_changes_nothing_and_a_step_makes_it_count(loaded):
    model, processor = loaded
    batch = make_batch(processor)
    with torch.no_grad():
        before = logps.plain_logps(model, batch)
    policy = models.attach_lora(model, Lora(), seed=0)
    with torch.no_grad():
        assert torch.equal(logps.plain_logps(policy, batch), before)
    assert models.adapter_effect(policy, batch) == 0
    optimiser = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=1e-3)
    logps.plain_logps(policy.train(), batch).sum().backward()
    optimiser.step()
    assert models.adapter_effect(policy, batch) > 1e-6
    with torch.no_grad(), policy.disable_adapter():
        assert torch.equal(logps.plain_logps(policy, batch), before)


def test_only_the_adapter_is_trained_and_only_in_the_language_model(model):
    policy = models.attach_lora(model, Lora(r=4), seed=0)
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name and ".language_model." in name for name in trained)
    assert len(trained) == 2 * 7 * 2 and not any(
        "lora_" in name for name, p in policy.named_parameters() if not p.requires_grad
    )


def test_paper_targets_match_the_same_layers():
    assert PROFILES["paper"].lora.targets == Lora().targets and PROFILES["paper"].lora.r == 64


def lora_weights(policy):
    return {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}


def test_adapter_depends_on_its_seed_alone_and_leaves_the_global_generator_be(folder):
    made = []
    for seed, global_seed in ((0, 1), (0, 2), (5, 1)):
        model, _ = models.load(folder, NF4)
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        made.append(lora_weights(models.attach_lora(model, Lora(), seed)))
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert any(not torch.equal(made[0][name], made[2][name]) for name in made[0])


def test_adapter_without_a_layer_to_adapt_is_refused(model):
    with pytest.raises(BadInput, match="LoRA found no layer to adapt with targets 'nothing_like_it'"):
        models.attach_lora(model, Lora(targets="nothing_like_it"), seed=0)


def test_adapter_is_found_again_by_stock_peft(folder, tmp_path):
    model, processor = models.load(folder, NF4)
    policy = models.attach_lora(model, Lora(r=4), seed=0)
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if "lora_B" in name:
                p.fill_(0.01)
    policy.save_pretrained(tmp_path)
    batch = make_batch(processor)
    inputs = {name: tensor for name, tensor in batch.items() if name != "response_mask"}
    config = models.four_bit_config(folder, NF4)
    stock = AutoModelForImageTextToText.from_pretrained(folder, quantization_config=config, dtype=torch.float32)
    models.guard_repacking(stock)  # with AVX512-BF16 it would round to bfloat16: test_cpu_paths.py
    stock = PeftModel.from_pretrained(stock, tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(stock(**inputs).logits, policy.eval()(**inputs).logits, rtol=1e-5, atol=1e-6)
    assert models.adapter_effect(stock, batch) > 1e-4


def test_adapter_whose_names_fit_nothing_is_refused_and_its_missing_effect_is_seen(folder, tmp_path):
    """The silent case: key prefixes of another library version. Stock peft only warns."""
    model, processor = models.load(folder, NF4)
    policy = models.attach_lora(model, Lora(r=4), seed=0)
    policy.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    renamed = {name.replace("language_model", "text_model"): w + 0.1 for name, w in weights.items()}
    save_file(renamed, tmp_path / "adapter_model.safetensors")
    with pytest.warns(UserWarning, match="missing adapter keys"):
        loaded = PeftModel.from_pretrained(models.load(folder, NF4)[0], tmp_path)
    assert models.adapter_effect(loaded, make_batch(processor)) == 0
    assert f"{2 * len(weights)} weights do not" in one_line(models.load_adapter, models.load(folder, NF4)[0], tmp_path)


def one_line(call, *arguments):
    with pytest.raises(BadInput) as bad:
        call(*arguments)
    assert "\n" not in str(bad.value) and len(str(bad.value)) < 600
    return str(bad.value)


def test_missing_adapter_names_the_notebook(model, tmp_path):
    assert "run notebook 03" in one_line(models.load_adapter, model, tmp_path / "adapter")


def test_an_adapter_in_a_pickle_is_not_opened(model, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"what a pickle would run")
    assert "only safetensors are loaded, never pickles" in one_line(models.load_adapter, model, tmp_path)


def test_an_adapter_that_is_not_lora_is_refused(model, tmp_path):
    """An X-LoRA configuration names more adapters to load, from anywhere."""
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    config = {"peft_type": "XLORA", "adapters": {"a": "evil/adapter"}, "hidden_size": 4}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert "XLORA is not LoRA" in one_line(models.load_adapter, model, tmp_path)


@pytest.mark.parametrize("quantisation", [NF4, Quantisation(four_bit=False)], ids=["nf4", "float32"])
def test_missing_model_folder_is_one_line(tmp_path, quantisation):
    missing = str(tmp_path / "no" / "such" / "model")
    line = one_line(models.load, missing, quantisation)
    assert missing in line and "MODEL=" in line
    (tmp_path / "empty").mkdir()
    assert "empty" in one_line(models.load, str(tmp_path / "empty"), quantisation)


def test_missing_hub_model_without_network_is_one_line():
    assert "nobody/no-such-model" in one_line(models.load, "nobody/no-such-model", NF4)


@pytest.mark.parametrize("damage", ["cut", "no weights", "no processor", "config"])
def test_damaged_model_folder_is_one_line(tmp_path, damage):
    save_tiny_llava(tmp_path)
    weights = tmp_path / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "no processor":
        for file in tmp_path.iterdir():
            if file.name not in ("config.json", "model.safetensors"):
                file.unlink()
    else:
        (tmp_path / "config.json").write_text("{ not json")
    assert str(tmp_path) in one_line(models.load, str(tmp_path), NF4)


def test_a_model_that_reads_no_images_is_refused_in_one_line(tmp_path):
    config = LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    assert str(tmp_path) in one_line(models.load, str(tmp_path), NF4)


def test_pickled_weights_are_refused(tmp_path):
    """Only safetensors: a pickle can run anything."""
    save_tiny_llava(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    one_line(models.load, str(tmp_path), NF4)


def changed(folder, file="config.json", **entries):
    """The JSON file of a model's folder, with more entries."""
    known = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps(known | entries))


def own_code(folder):
    """A model type of its own whose module leaves a mark if it runs."""
    code = f"open({str(folder / 'ran')!r}, 'w')\nraise SystemExit"
    (folder / "evil.py").write_text(code)
    named = {"AutoConfig": "evil.C", "AutoModelForImageTextToText": "evil.M", "AutoProcessor": "evil.P"}
    changed(folder, model_type="evil", auto_map=named)


def own_tokenizer(folder):
    changed(folder, "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]})
    changed(folder, "processor_config.json", auto_map={"AutoProcessor": "evil.P"}, processor_class="EvilProcessor")
    own_code_file = folder / "evil.py"
    own_code_file.write_text(f"open({str(folder / 'ran')!r}, 'w')")


def pickled_shards(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "weights.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "weights.bin")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pickle_by_configuration(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "adapter_model.bin")
    changed(folder, transformers_weights="adapter_model.bin")


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (own_code, "code of its own, which is never run"),
        (own_tokenizer, "code of its own, which is never run"),
        (pickled_shards, "names the shard 'weights.bin'"),
        (pickle_by_configuration, "keeps its weights in 'adapter_model.bin'"),
        (lambda folder: changed(folder, _attn_implementation="evil/kernel"), "asks for the kernel 'evil/kernel'"),
        (lambda folder: changed(folder, "adapter_config.json", base_model_name_or_path="x"), "names another model"),
        (lambda folder: changed(folder, "processor_config.json", audio_tokenizer={}), "names another model"),
        (lambda folder: (folder / "config.json").write_text('{"a":' * 100_000), "RecursionError|recursion"),
    ],
)
@pytest.mark.parametrize("four_bit", [False, True])
def test_files_of_a_stranger_run_nothing_open_no_pickle_and_ask_nothing(tmp_path, monkeypatch, attack, said, four_bit):
    save_tiny_llava(tmp_path)
    attack(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *asked: pytest.fail("asked on standard input"))
    monkeypatch.setattr(torch, "load", lambda *asked, **more: pytest.fail("a pickle was opened"))
    assert re.search(said, one_line(models.load, str(tmp_path), Quantisation(four_bit=four_bit)))
    assert not (tmp_path / "ran").exists()


def test_missing_and_mismatched_weights_are_an_error(tmp_path, capfd):
    """Stock transformers makes a missing weight at random, with a warning of many lines."""
    save_tiny_llava(tmp_path)
    capfd.readouterr()
    whole = load_file(tmp_path / "model.safetensors")
    name = next(name for name in sorted(whole) if "down_proj" in name)
    few = {other: tensor for other, tensor in whole.items() if other != name}
    for weights, said in ((few, "1 weights are missing"), (few | {name: torch.ones(3, 3)}, "another shape")):
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
        for quantisation in (NF4, Quantisation(four_bit=False)):
            line = one_line(models.load, str(tmp_path), quantisation)
            assert said in line and ("down_proj" in line or "Linear4bit" in line)
    assert capfd.readouterr().err == ""
    save_file(whole | {"stray.weight": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.warns(UserWarning, match="1 weights are not used, the first is stray.weight"):
        models.load(str(tmp_path), Quantisation(four_bit=False))


def test_loading_shows_no_bar_and_leaves_the_bars_of_others(folder, capfd):
    models.load(folder, NF4)
    assert capfd.readouterr() == ("", "")
    list(transformers.utils.logging.tqdm([1], desc="another"))
    assert "another" in capfd.readouterr().err


def test_cuda_without_a_gpu_is_one_line_with_a_remedy(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = one_line(models.load, folder, NF4, "cuda")
    assert "CUDA GPU" in line and "PROFILE=desk" in line


@pytest.mark.parametrize("device", ["gpu", "cuda:7", "CPU", ""])
def test_unknown_device_is_one_line(folder, device):
    assert f"unknown device {device!r}: use cpu or cuda" in one_line(models.load, folder, NF4, device)


def test_missing_desk_base_names_its_remedy():
    assert "make bases BASES=12345" in one_line(models.source, Profile(name="x"), 12345)


def test_identity_follows_content_not_place(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    here, there = Profile(name="x", model=str(folder)), Profile(name="x", model=str(tmp_path / "copy"))
    before = models.identity(here, 0)
    assert before == models.identity(there, 0)
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config | {"x": 1}))
    assert before == models.identity(here, 0) != models.identity(there, 0)


def test_identity_of_a_hub_model_follows_its_revision():
    first, second = (Profile(name="x", model="nobody/model", revision=revision) for revision in ("aaa", "bbb"))
    assert models.identity(first, 0) != models.identity(second, 0)
