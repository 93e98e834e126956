"""What is brought in: preference records, documents, tokenizers, assets of the package index.

May import: runtime.errors. Imported by: everyone above. No model, no mesh.
"""
