"""Use a loaded model in other programs: ASE, torch-sim, i-PI, and programs that read metatomic.

In: a LoadedModel from `hub/load.py`. Out: objects or files for these programs. Every engine
predicts at one level of theory and refuses elements without training data at that level.

Open `calculator.py` first. The other engines follow its design: `torch_sim_model.py` and
`i_pi_driver.py`. For metatomic, `metatomic_export.py` writes the file, and `metatomic_model.py` is
its content.
"""
