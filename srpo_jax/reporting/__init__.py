"""Win rates with their statistics, and what shows them.

Evidence (documents, texts, verdicts) is assembled into a report; a report is written as figure, tables,
page, JSON and Parquet. May import: data (what a document is about), runtime. Imported by: judges (the win
rates of their own check), the programs. No model, no mesh.
"""
