"""`oddpatch demo`: a page in the browser that fits a method and shows what it finds. By Streamlit."""
