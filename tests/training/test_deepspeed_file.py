"""The file of --deepspeed: what it may hold, and how the rest is refused before anything starts."""

import json
from pathlib import Path

import pytest

pytest.importorskip("deepspeed")

from rg.training.deepspeed_file import read_settings

STAGE1 = Path(__file__).parents[2] / "launch" / "stage1.json"


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"zero_optimization": {"stage": 1}},
        {"zero_optimization": {"stage": 2, "reduce_bucket_size": 5e8, "offload_optimizer": {"device": "none"}}},
        {"communication_data_type": "fp32", "wall_clock_breakdown": True, "comms_logger": {"enabled": False}},
        json.loads(STAGE1.read_text()),
    ],
)
def test_what_says_how_is_taken(tmp_path, content):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(content))
    assert read_settings(path) == content


@pytest.mark.parametrize(
    "text,reason",
    [
        ("true", "expected an object of settings, got bool"),
        ('{"zero_optimization": true}', "zero_optimization: expected an object of settings such as {...}, got true"),
        ('{"zero_optimization": {"stage": "2"}}', "zero_optimization.stage: expected a whole number from 0 to 2"),
        ('{"zero_optimization": {"stage": true}}', "stage: expected a whole number from 0 to 2, got true"),
        ('{"zero_optimization": {"stage": 3}}', "expected zero_optimization.stage 0 to 2, got 3"),
        ('{"zero_optimisation": {"stage": 1}}', "zero_optimisation: unknown setting; did you mean zero_optimization?"),
        ('{"zero_optimization": {"overlap_com": true}}', "overlap_com: unknown setting; did you mean overlap_comm?"),
        (
            '{"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}}',
            "zero_optimization.offload_optimizer: leave it out",
        ),
        ('{"zero_optimization": {"reduce_bucket_size": -1}}', "zero_optimization.reduce_bucket_size: input should be"),
        ('{"zero_optimization": {"stage": 1}, "zero_optimization": {}}', "zero_optimization is there twice"),
        ('{"zero_allow_untested_optimizer": false}', "zero_allow_untested_optimizer: expected true, got false"),
        ('{"communication_data_type": "float"}', "communication_data_type: expected one of fp32, fp16, bf16"),
        ('{"gradient_predivide_factor": 0}', "gradient_predivide_factor: expected a positive number, got 0"),
        ('{"prescale_gradients": "yes"}', 'prescale_gradients: expected true or false, got "yes"'),
        ('{"fp16": {"enabled": true}}', "sets fp16, which is set by train.precision"),
        ('{"comms_logger": {"enabled": "perhaps"}}', "comms_logger.enabled: input should be a valid boolean"),
    ],
)
def test_all_else_is_refused_by_its_name(tmp_path, text, reason):
    path = tmp_path / "settings.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"^--deepspeed: ") as refused:
        read_settings(path)
    assert str(path) in str(refused.value)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)
