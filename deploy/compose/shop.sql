-- Sample data of compose.yaml, run once, when the server's data folder is made.
CREATE TABLE customers (
    id bigint PRIMARY KEY,
    name text NOT NULL,
    since date NOT NULL
);

CREATE TABLE orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id bigint NOT NULL REFERENCES customers,
    amount numeric(12, 2) NOT NULL,
    note text,
    created_at timestamptz NOT NULL DEFAULT now()
);

INSERT INTO customers
SELECT n, 'customer ' || n, date '2020-01-01' + (n % 1000)::int
FROM generate_series(1, 1000) AS n;

INSERT INTO orders (customer_id, amount, note)
SELECT 1 + n % 1000, (n % 10000) / 100.0, CASE WHEN n % 3 = 0 THEN 'gift' END
FROM generate_series(1, 100000) AS n;
