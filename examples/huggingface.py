"""Train, export, and use the model in transformers and in lm-eval.

Needs the extra hf; its last part needs eval. Start it in an empty folder.
"""

import importlib.util
import json
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import phasegpt
import phasegpt.model.huggingface  # transformers knows our folders after this
from phasegpt.evaluate import EvaluateConfig, evaluate, task_table
from phasegpt.export import ExportConfig, export

small = ["model=nano", "model.n_layer=2", "attention.layers=all", "trainer=cpu"]
short = ["trainer.max_steps=20", "trainer.val_check_interval=20"]
phasegpt.fit(phasegpt.compose(["+experiment=quickstart", *small, *short]), "runs/mine")
print(*export(ExportConfig(checkpoint="runs/mine", out="my_model")), sep="\n")

model = AutoModelForCausalLM.from_pretrained("my_model")
tokenizer = AutoTokenizer.from_pretrained("my_model")
ids = tokenizer("MARIN. The ", return_tensors="pt")
out = model.generate(**ids, max_new_tokens=40, do_sample=True, top_k=10)
print(tokenizer.decode(out[0]))

# What transformers saves, phasegpt.load reads, with its tokenizer.
model.save_pretrained("saved")
print(f"{phasegpt.load('saved').num_parameters():,} parameters")

# A task of one's own: two texts, of which the model should prefer the first.
rows = [{"begin": "MARIN. ", "ends": ["The ", "Teh "], "right": 0}] * 4
Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
Path("task.yaml").write_text("""
task: spelling
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{begin}}"
doc_to_choice: "{{ends}}"
doc_to_target: "{{right}}"
target_delimiter: ""
metric_list: [{metric: acc}]
""")
if importlib.util.find_spec("lm_eval"):
    print(task_table(evaluate(EvaluateConfig(checkpoint="my_model", tasks=("task.yaml",)))))
