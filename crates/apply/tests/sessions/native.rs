//! Reads blocks of ClickHouse's Native format back, for the few types that the scenes use.

use millrace_mapping::EncodedBlock;

/// A row of a block, its values as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) values: Vec<String>,
    pub(crate) version: u64,
    pub(crate) is_deleted: bool,
}

/// The rows of a block, the three metadata columns apart.
pub(crate) fn rows(block: &EncodedBlock) -> Vec<Row> {
    let bytes: Vec<u8> = block.pieces.concat();
    let mut reader = Reader { rest: &bytes };
    let (columns, rows) = (reader.varuint(), reader.varuint());
    assert_eq!(rows, block.rows);
    let mut table: Vec<Vec<String>> = vec![Vec::new(); rows];
    for _ in 0..columns {
        let _name = reader.string();
        let kind = reader.string();
        for (row, value) in table.iter_mut().zip(reader.column(&kind, rows)) {
            row.push(value);
        }
    }
    assert!(reader.rest.is_empty(), "bytes are left over");
    let split = |mut values: Vec<String>| {
        let metadata = values.split_off(values.len() - 3);
        let version = metadata[0].parse().expect("a number");
        Row { values, version, is_deleted: metadata[1] == "1" }
    };
    table.into_iter().map(split).collect()
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn column(&mut self, kind: &str, rows: usize) -> Vec<String> {
        if let Some(inner) = kind.strip_prefix("Nullable(").and_then(|rest| rest.strip_suffix(')')) {
            let nulls: Vec<u8> = (0..rows).map(|_| self.array::<1>()[0]).collect();
            let values = self.column(inner, rows);
            let shown = nulls.iter().zip(values);
            return shown.map(|(null, value)| if *null == 1 { "NULL".to_owned() } else { value }).collect();
        }
        let value = |reader: &mut Self| match kind {
            "Int32" => i32::from_le_bytes(reader.array()).to_string(),
            "Int64" | "DateTime64(9)" => i64::from_le_bytes(reader.array()).to_string(),
            "UInt64" => u64::from_le_bytes(reader.array()).to_string(),
            "UInt8" => reader.array::<1>()[0].to_string(),
            "String" => reader.string(),
            other => panic!("the scenes have no {other}"),
        };
        (0..rows).map(|_| value(self)).collect()
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let (taken, rest) = self.rest.split_first_chunk::<N>().expect("the block goes on");
        self.rest = rest;
        *taken
    }

    fn varuint(&mut self) -> usize {
        let (mut number, mut shift) = (0, 0);
        loop {
            let [byte] = self.array();
            number |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return number;
            }
        }
    }

    fn string(&mut self) -> String {
        let length = self.varuint();
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        String::from_utf8(taken.to_vec()).expect("text")
    }
}
