"""Check, train and load an attention of your own: the package stays as it is.

`pip install ./my_mechanism` would make it attention=my_mechanism anywhere; here it is a module.
"""

import sys
from pathlib import Path

import phasegpt
from phasegpt.check import check

sys.path.insert(0, str(Path(__file__).parent / "my_mechanism"))

# Every rule of an attention layer; `python -m phasegpt.check my_mechanism.layer` prints the report.
findings = check("my_mechanism.layer", compile=False)
broken = [finding.rule for finding in findings if finding.status == "BROKEN"]
print(f"{len(findings)} rules, broken: {broken or 'none'}")

# A folder like conf/ makes it an option with a name; on the command line: --config-dir my_conf.
option = Path("my_conf/attention/pull.yaml")
option.parent.mkdir(parents=True, exist_ok=True)
option.write_text("name: my_mechanism.layer\nlayers: all\ncoupling: 1.0\n")

small = ["model=nano", "model.n_layer=2", "attention.layers=all", "data.batch_size=4"]
short = ["trainer=cpu", "trainer.max_steps=20", "trainer.val_check_interval=20"]
words = ["+experiment=quickstart", "attention=pull", "attention.coupling=0.5", *small, *short]
# After an edit of the layer give a new folder: one run is of one code.
record = phasegpt.fit(phasegpt.compose(words, config_dir="my_conf"), "runs/own")
print(f"perplexity {record['final']['val/ppl']:.2f}, code {record['attention_code']['module']}")

model = phasegpt.load("runs/own")  # the module is imported: by fit here, elsewhere by you
print(f"K of the heads of layer 0: {model.blocks[0].attn.coupling.tolist()}")
