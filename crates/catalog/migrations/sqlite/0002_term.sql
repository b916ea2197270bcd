-- The last term of leading. The lease itself is not stored: the file belongs to one process at a time.

ALTER TABLE meta ADD COLUMN last_term INTEGER NOT NULL DEFAULT 0 CHECK (last_term >= 0);
