"""Reference tables: elemental crystals, lattice parameters and bond lengths, with their sources.

elements.csv   E. Bosoni et al., Nat. Rev. Phys. 6, 45 (2024), MIT licence: PBE without spin, VASP;
               written by benchmarks/acwf_table.py
lattices.csv   J. Harl, L. Schimka, G. Kresse, Phys. Rev. B 81, 115126 (2010): PBE, and experiment
               without zero-point expansion; A
dimers.csv     K. P. Huber, G. Herzberg, Constants of Diatomic Molecules (1979), as in the NIST
               Chemistry WebBook: r_e in A
"""
