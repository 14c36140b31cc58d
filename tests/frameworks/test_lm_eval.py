"""lm-eval, which scores answers by their log-probabilities and asks us for the tokenizer."""

import json

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

TASK = """
task: capitals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "The capital of {{{{country}}}} is"
doc_to_choice: ["Paris", "Rome", "Berlin", "Madrid"]
doc_to_target: capital
metric_list: [{{metric: acc}}]
"""
CAPITALS = [("France", "Paris"), ("Italy", "Rome"), ("Germany", "Berlin"), ("Spain", "Madrid")]


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    data = tmp_path / "capitals.jsonl"
    data.write_text("".join(json.dumps({"country": country, "capital": capital}) + "\n"
                            for country, capital in CAPITALS))
    (tmp_path / "capitals.yaml").write_text(TASK.format(data=data))
    return TaskManager(include_path=str(tmp_path), include_defaults=False)


def test_choices_are_scored_with_our_tokenizer(real, tasks):
    arguments = {"model": "smollm2-135m-instruct", "base_url": f"{real}/v1/completions",
                 "tokenizer_backend": "remote", "num_concurrent": 2, "max_retries": 1}
    found = simple_evaluate("local-completions", model_args=arguments, tasks=["capitals"],
                                    task_manager=tasks, bootstrap_iters=0)
    assert found["results"]["capitals"]["acc,none"] >= 0.75, found["results"]
    assert found["n-samples"]["capitals"]["effective"] == len(CAPITALS)
