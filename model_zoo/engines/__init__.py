"""A loaded model in other programs: ASE, torch-sim, i-PI, and whatever reads metatomic files.

In: a LoadedModel of `hub/load.py`. Out: objects or files that these programs can use. All of them
predict at one level of theory, and refuse elements which that level never saw in training.

Open `calculator.py` first. The other engines follow it: `torch_sim_model.py`, `i_pi_driver.py`, and
for metatomic `metatomic_export.py`, which writes the file, and `metatomic_model.py`, its content.
"""
