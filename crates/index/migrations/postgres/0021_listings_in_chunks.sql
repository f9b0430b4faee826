-- The few listings that are stored as chunks. A collection reads their recipes, and would read all
-- other listings with them. The condition is that of no other statement: PostgreSQL would read the
-- whole index for each NAR if it expects few rows.
CREATE INDEX listings_in_chunks ON listings (nar) WHERE size >= 0;
