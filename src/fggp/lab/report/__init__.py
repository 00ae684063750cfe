"""`fggp report`: compares finished runs in tables, statistics, pictures and one page.

Data flows one way: records (what was read) → tables (which runs are compared) → statistics, findings (what follows) →
pictures, markdown, page (how it is shown).
"""
