"""Fit on images of good parts, save, test, report: `oddpatch train` from a checkout.

python train.py                                     # PaDiM on rendered circuit boards
python train.py model=padim backbone=effnet_b4 data=pcb
python train.py data=mvtec data.root=/data/mvtec data.category=bottle
python train.py -m model=padim,patchcore data=mvtec data.category=all    # a sweep, see docs/sweeps.md
"""

from oddpatch.train import main

if __name__ == "__main__":
    main()
