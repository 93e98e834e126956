"""The paper's claims where the exact answer is known: tables, and the same with a transformer.

May import: every room but reporting and judges. Imported by: nobody; each module is a command.
"""
