-- On SQLite, names are in the order of their bytes already: this step is PostgreSQL's alone.
SELECT 1;
