"""The script that Streamlit runs for each visitor, from top to bottom, after every click."""

from oddpatch.demo import page

if __name__ == "__main__":  # as Streamlit calls it
    page.show()
