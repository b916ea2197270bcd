-- Every record is JSON as `millrace-lifecycle` defines it (text, so that it comes back byte for byte), except partitions: there may be a million of them.

CREATE TABLE meta (
    id integer PRIMARY KEY CHECK (id = 0),
    last_epoch bigint NOT NULL CHECK (last_epoch >= 0)
);

INSERT INTO meta (id, last_epoch) VALUES (0, 0);

-- Who leads, by this server's clock. Each commit holds the row FOR SHARE and compares the term; who takes over must wait for it, and every commit after that finds another term.
CREATE TABLE leadership (
    id integer PRIMARY KEY CHECK (id = 0),
    term bigint NOT NULL CHECK (term >= 0),
    holder text NOT NULL,
    address text NOT NULL,
    expires timestamptz NOT NULL
);

INSERT INTO leadership (id, term, holder, address, expires) VALUES (0, 0, '', '', '-infinity');

CREATE TABLE pipes (
    id text COLLATE "C" PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    version bigint NOT NULL CHECK (version >= 1),
    record text NOT NULL
);

CREATE TABLE tables (
    pipe_id text COLLATE "C" NOT NULL REFERENCES pipes (id) ON DELETE CASCADE,
    position bigint NOT NULL,
    record text NOT NULL,
    PRIMARY KEY (pipe_id, position)
);

-- `end_page` is NULL where the partition reads to the end of the table; `rows` and `bytes` are NULL until it is copied.
CREATE TABLE partitions (
    pipe_id text COLLATE "C" NOT NULL,
    table_position bigint NOT NULL,
    number bigint NOT NULL,
    first_page bigint NOT NULL,
    end_page bigint,
    rows bigint,
    bytes bigint,
    PRIMARY KEY (pipe_id, table_position, number),
    FOREIGN KEY (pipe_id, table_position) REFERENCES tables (pipe_id, position) ON DELETE CASCADE,
    CHECK ((rows IS NULL) = (bytes IS NULL))
);

CREATE TABLE assignments (
    pipe_id text COLLATE "C" NOT NULL REFERENCES pipes (id) ON DELETE CASCADE,
    epoch bigint NOT NULL,
    record text NOT NULL,
    PRIMARY KEY (pipe_id, epoch)
);

CREATE TABLE events (
    pipe_id text COLLATE "C" NOT NULL REFERENCES pipes (id) ON DELETE CASCADE,
    id bigint NOT NULL,
    record text NOT NULL,
    PRIMARY KEY (pipe_id, id)
);
