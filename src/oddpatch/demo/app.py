"""The script that Streamlit runs for each visitor, from top to bottom, after every click."""

from oddpatch.demo import page

page.show()
