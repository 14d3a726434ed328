"""A backbone's identity: it changes with everything that changes an output, and with nothing else."""

import copy
import inspect
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import normalizers
from transformers import CLIPTokenizer
from transformers.models.clip import modeling_clip

from methods.parts.backbone import Backbone
from methods.parts.feature_cache import FeatureScope
from methods.parts.identity import TEXT_FIELDS, VISION_FIELDS, config_hash, tokenizer_hash
from methods.zero_shot import ZeroShot
from tests.support.tiny_clip import tiny_clip_folder, tiny_config, tiny_tokenizer


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may change."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "elsewhere"))


def edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def test_another_folder_or_another_spelling_of_the_same_is_the_same(tiny_backbone: Backbone, folder: Path) -> None:
    assert Backbone.load(folder).identity == tiny_backbone.identity
    edit(
        folder / "config.json",
        lambda config: config.update(
            transformers_version="4.30.0", architectures=["Anything"], torch_dtype="float16", _name_or_path="x"
        ),
    )
    edit(folder / "config.json", lambda config: config["text_config"].update(eos_token_id=[tiny_eos()]))
    edit(folder / "config.json", lambda config: config["vision_config"].update(layer_norm_eps=0.00001))
    assert Backbone.load(folder).identity == tiny_backbone.identity
    again = folder / "again"
    loaded = Backbone.load(folder)
    loaded.model.save_pretrained(again)
    loaded.tokenizer.save_pretrained(again)
    assert Backbone.load(again).identity == tiny_backbone.identity
    assert tiny_backbone.clone().identity == tiny_backbone.identity


def tiny_eos() -> int:
    return int(tiny_config().text_config.eos_token_id)


@pytest.mark.parametrize(
    ("tower", "field", "value"),
    [
        ("vision", "hidden_act", "gelu"),
        ("text", "hidden_act", "gelu"),
        ("vision", "num_attention_heads", 8),
        ("text", "num_attention_heads", 2),
        ("vision", "layer_norm_eps", 1e-6),
        ("text", "layer_norm_eps", 1e-6),
    ],
)
def test_a_changed_config_is_another_backbone(
    tiny_backbone: Backbone, folder: Path, tower: str, field: str, value: Any
) -> None:
    edit(folder / "config.json", lambda config: config[f"{tower}_config"].update({field: value}))
    changed, before = Backbone.load(folder), tiny_backbone.identity
    assert changed.identity["config_hash"] != before["config_hash"]
    assert {**changed.identity, "config_hash": ""} == {**before, "config_hash": ""}
    assert FeatureScope.of(changed, "x").key != FeatureScope.of(tiny_backbone, "x").key


def test_where_a_text_ends_is_part_of_the_config() -> None:
    hashes = {config_hash(tiny_config(text={"eos_token_id": end})) for end in (2, 7, 8)}
    assert len(hashes) == 3
    in_memory = [Backbone.from_config(tiny_config(text={"eos_token_id": end}), seed=0) for end in (7, 8)]
    assert in_memory[0].weights_hash == in_memory[1].weights_hash
    assert in_memory[0].identity != in_memory[1].identity
    assert in_memory[0].identity["tokenizer_hash"] == ""


def test_every_setting_that_clip_reads_is_known() -> None:
    """Fails when ``transformers`` begins to read a setting: decide then whether it changes an output."""
    source = inspect.getsource(modeling_clip)
    read = set(re.findall(r"config\.(\w+)", source))
    harmless = {
        *("text_config", "vision_config", "num_labels"),
        *("initializer_factor", "initializer_range", "logit_scale_init_value"),  # loaded weights replace them
        "_attn_implementation",  # never used: methods.parts.transformer runs the blocks
    }
    assert read - harmless - {"projection_dim", *TEXT_FIELDS, *VISION_FIELDS} == set()


def two_words_swapped(tokenizer: dict[str, Any]) -> None:
    words = tokenizer["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]


def merge_order(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["merges"].reverse()


@pytest.mark.parametrize("change", [two_words_swapped, merge_order])
def test_a_changed_tokenizer_file_is_another_backbone(
    tiny_backbone: Backbone, folder: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    tiny_backbone.tokenizer.save_pretrained(folder)  # learned anew, a vocabulary may be numbered otherwise
    edit(folder / "tokenizer.json", change)
    changed, before = Backbone.load(folder), tiny_backbone.identity
    assert changed.identity["tokenizer_hash"] != before["tokenizer_hash"]
    assert changed.weights_hash == before["weights_hash"]


def test_a_changed_tokenizer_setting_is_another_tokenizer(tmp_path: Path) -> None:
    def again(**changes: Any) -> str:
        tiny.save_pretrained(tmp_path / "t")
        edit(tmp_path / "t" / "tokenizer_config.json", lambda settings: settings.update(changes))
        return tokenizer_hash(CLIPTokenizer.from_pretrained(tmp_path / "t"))

    tiny = tiny_tokenizer()
    same = again()
    assert same == tokenizer_hash(tiny) == again(clean_up_tokenization_spaces=True)
    changed = [again(model_max_length=20), again(eos_token="a</w>"), again(bos_token="b"), again(pad_token="c")]
    assert len({same, *changed}) == 5


def test_a_normaliser_and_added_words_count_while_calls_change_nothing() -> None:
    tokenizer = tiny_tokenizer()
    before = tokenizer_hash(tokenizer)
    tokenizer(["a", "a photo"], padding=True, truncation=True, max_length=4)
    assert tokenizer_hash(tokenizer) == before
    assert tokenizer_hash(copy.deepcopy(tokenizer)) == before
    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFC()])
    assert tokenizer_hash(other) != before
    tokenizer.add_tokens(["zebra"])
    assert tokenizer_hash(tokenizer) != before


def test_a_tokenizer_written_in_python_is_named_by_its_files() -> None:
    class Plain:
        model_max_length = 8
        all_special_ids = (0,)

        def __init__(self, words: list[str]) -> None:
            self.words = words
            for name in ("bos", "eos", "unk", "pad"):
                setattr(self, f"{name}_token", "x")
                setattr(self, f"{name}_token_id", 0)

        def __len__(self) -> int:
            return len(self.words)

        def get_vocab(self) -> dict[str, int]:
            return {word: number for number, word in enumerate(self.words)}

        def save_vocabulary(self, folder: str) -> None:
            (Path(folder) / "words.txt").write_text("\n".join(self.words))

    assert tokenizer_hash(Plain(["a", "b"])) == tokenizer_hash(Plain(["a", "b"]))
    assert tokenizer_hash(Plain(["a", "b"])) != tokenizer_hash(Plain(["b", "a"]))


def test_weights_kept_at_half_precision_are_other_weights(tiny_folder: Path, folder: Path) -> None:
    Backbone.load(tiny_folder).model.bfloat16().save_pretrained(folder)
    loaded, before = Backbone.load(folder).identity, Backbone.load(tiny_folder).identity
    assert loaded["weights_hash"] != before["weights_hash"]
    assert loaded["config_hash"] == before["config_hash"]


def test_a_trained_method_is_refused_on_another_config(tiny_backbone: Backbone, folder: Path, tmp_path: Path) -> None:
    ZeroShot(tiny_backbone).save(tmp_path / "kept")
    assert isinstance(ZeroShot.load(tmp_path / "kept", tiny_backbone), ZeroShot)
    edit(folder / "config.json", lambda config: config["vision_config"].update(hidden_act="gelu"))
    with pytest.raises(ValueError, match="another config"):
        ZeroShot.load(tmp_path / "kept", Backbone.load(folder))
    edit(tmp_path / "kept.json", lambda record: record.pop("identity"))  # as older versions wrote it
    assert isinstance(ZeroShot.load(tmp_path / "kept", Backbone.load(folder)), ZeroShot)


def test_the_tiny_folder_is_like_the_tiny_model(tmp_path: Path) -> None:
    assert Backbone.load(tiny_clip_folder(tmp_path / "t")).identity["config_hash"] == config_hash(tiny_config())
