"""Win rates with their intervals, and what shows them: data, figure, table, page.

May import: runtime.errors. Imported by: judges (the win rates of their own check), the programs. No
model, no mesh.
"""
