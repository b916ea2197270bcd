-- Every record is JSON as `millrace-lifecycle` defines it, except partitions: there may be a million of them.

CREATE TABLE meta (
    id INTEGER PRIMARY KEY CHECK (id = 0),
    last_epoch INTEGER NOT NULL CHECK (last_epoch >= 0)
) STRICT;

INSERT INTO meta (id, last_epoch) VALUES (0, 0);

CREATE TABLE pipes (
    id TEXT PRIMARY KEY NOT NULL,
    name TEXT NOT NULL UNIQUE,
    version INTEGER NOT NULL CHECK (version >= 1),
    record TEXT NOT NULL
) STRICT;

CREATE TABLE tables (
    pipe_id TEXT NOT NULL REFERENCES pipes (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (pipe_id, position)
) STRICT;

-- `end_page` is NULL where the partition reads to the end of the table; `rows` and `bytes` are NULL until it is copied.
CREATE TABLE partitions (
    pipe_id TEXT NOT NULL,
    table_position INTEGER NOT NULL,
    number INTEGER NOT NULL,
    first_page INTEGER NOT NULL,
    end_page INTEGER,
    rows INTEGER,
    bytes INTEGER,
    PRIMARY KEY (pipe_id, table_position, number),
    FOREIGN KEY (pipe_id, table_position) REFERENCES tables (pipe_id, position) ON DELETE CASCADE,
    CHECK ((rows IS NULL) = (bytes IS NULL))
) STRICT, WITHOUT ROWID;

CREATE TABLE assignments (
    pipe_id TEXT NOT NULL REFERENCES pipes (id) ON DELETE CASCADE,
    epoch INTEGER NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (pipe_id, epoch)
) STRICT;

CREATE TABLE events (
    pipe_id TEXT NOT NULL REFERENCES pipes (id) ON DELETE CASCADE,
    id INTEGER NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (pipe_id, id)
) STRICT;
