"""`fggp report`: finished runs as tables, statistics, pictures and one page.

Data flows one way here too: records (what was read) → tables (what is compared with what) → statistics, findings (what
follows) → pictures, markdown, page (how it is shown).
"""
