"""Test a finished run again; nothing is needed but its folder: `oddpatch eval` from a checkout.

python eval.py run=outputs/padim-effnet_lite0/pcb/2026-01-31_12-00-00-000000
python eval.py run=FOLDER +data.root=/data/mvtec    # images that have moved since
"""

from oddpatch.eval import main

if __name__ == "__main__":
    main()
