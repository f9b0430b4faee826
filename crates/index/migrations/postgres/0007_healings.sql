-- One row: how often a pack took over chunks that were stored before. A reader that remembers the
-- number knows whether the frames of a NAR may have changed since.
CREATE TABLE healings (
    only_row BIGINT NOT NULL PRIMARY KEY CHECK (only_row = 1),
    number BIGINT NOT NULL
);
INSERT INTO healings (only_row, number) VALUES (1, 0);
