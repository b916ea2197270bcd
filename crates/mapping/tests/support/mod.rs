//! Values in PostgreSQL's two forms, written without the crate under test.

#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

use millrace_mapping::{BlockBuilder, Cell, ColumnPlan, EncodedBlock, MappingOptions, plan_columns};
use millrace_model::spec::MetadataColumns;
use millrace_model::{PgType, ReplicaIdentity, SourceColumn, TableDefinition, TableName, Timestamp};
use proptest::prelude::*;

pub const OPTIONS: MappingOptions = MappingOptions { allow_nullable_columns: true, time64: true };

/// A table with these columns and no key.
pub fn table(columns: &[(&str, PgType, bool)]) -> TableDefinition {
    let columns = columns.iter().enumerate().map(|(at, (name, pg_type, nullable))| SourceColumn {
        name: (*name).to_owned(),
        attribute: at as i16 + 1,
        type_oid: 0,
        type_modifier: -1,
        type_name: String::new(),
        pg_type: pg_type.clone(),
        nullable: *nullable,
        generated: false,
    });
    TableDefinition {
        name: TableName::new("public", "t"),
        oid: 1,
        file_node: 1,
        columns: columns.collect(),
        key: Vec::new(),
        replica_identity: ReplicaIdentity::Full,
        pages: 1,
        estimated_rows: 1,
        bytes: 8192,
        retired: Vec::new(),
        partitions: Vec::new(),
        distrusted_until: millrace_model::Lsn::ZERO,
        holds_from: millrace_model::Lsn::ZERO,
    }
}

pub fn plan(columns: &[(&str, PgType, bool)]) -> Vec<ColumnPlan> {
    plan_columns(&table(columns), &OPTIONS)
}

pub fn builder(plan: &[ColumnPlan]) -> BlockBuilder {
    BlockBuilder::new(plan, &MetadataColumns::millrace())
}

/// A block of one column with one row per cell.
pub fn block(plan: &ColumnPlan, cells: &[Cell<'_>]) -> EncodedBlock {
    let mut block = builder(std::slice::from_ref(plan));
    for cell in cells {
        block.append_cell(0, *cell).unwrap();
        block.end_row(1, false).unwrap();
    }
    let expected = block.bytes();
    let encoded = block.finish(Timestamp(0));
    assert_eq!(encoded.bytes(), expected, "bytes() must be what finish() gives");
    encoded
}

/// What stands between the column's header and the metadata columns of such a block.
pub fn values(plan: &ColumnPlan, cells: &[Cell<'_>]) -> Vec<u8> {
    let bytes = block(plan, cells).pieces.concat();
    let header = 4 + plan.name.len() + plan.target.to_string().len();
    let metadata = "_millrace_version".len()
        + "UInt64".len()
        + "_millrace_is_deleted".len()
        + "UInt8".len()
        + "_millrace_synced_at".len()
        + "DateTime64(9)".len()
        + 6
        + cells.len() * 17;
    bytes[header..bytes.len() - metadata].to_vec()
}

/// One value in both forms.
#[derive(Debug, Clone)]
pub struct Value {
    pub binary: Vec<u8>,
    pub text: Vec<u8>,
}

impl Value {
    pub fn new(binary: impl AsRef<[u8]>, text: impl AsRef<[u8]>) -> Self {
        Self { binary: binary.as_ref().to_vec(), text: text.as_ref().to_vec() }
    }
}

/// Every scalar type that has a binary form.
pub fn scalar_types() -> Vec<PgType> {
    vec![
        PgType::Bool,
        PgType::Int2,
        PgType::Int4,
        PgType::Int8,
        PgType::Oid,
        PgType::Float4,
        PgType::Float8,
        PgType::Numeric(None),
        PgType::Numeric(Some((7, 3))),
        PgType::Numeric(Some((18, 0))),
        PgType::Numeric(Some((12, 2))),
        PgType::Numeric(Some((30, 9))),
        PgType::Numeric(Some((38, 38))),
        PgType::Numeric(Some((76, 21))),
        PgType::Numeric(Some((5, -2))),
        PgType::Text,
        PgType::Json,
        PgType::Jsonb,
        PgType::Bytea,
        PgType::Uuid,
        PgType::Date,
        PgType::Timestamp,
        PgType::TimestampTz,
        PgType::Time,
        PgType::Enum,
        PgType::Hstore,
        PgType::Vector,
        PgType::HalfVec,
    ]
}

/// A type and some of its values, arrays included; NULL is `None`.
pub fn typed_values() -> impl Strategy<Value = (PgType, Vec<Option<Value>>)> {
    let scalar = proptest::sample::select(scalar_types());
    (scalar, any::<bool>()).prop_flat_map(|(scalar, array)| {
        let pg_type = if array { PgType::Array(Box::new(scalar.clone())) } else { scalar.clone() };
        let one = if array { array_of(&scalar).boxed() } else { value_of(&scalar) };
        (Just(pg_type), proptest::collection::vec(proptest::option::weighted(0.8, one), 1..6))
    })
}

pub fn value_of(pg_type: &PgType) -> BoxedStrategy<Value> {
    match pg_type {
        PgType::Bool => {
            any::<bool>().prop_map(|b| Value::new([u8::from(b)], if b { "t" } else { "f" })).boxed()
        }
        PgType::Int2 => any::<i16>().prop_map(|n| Value::new(n.to_be_bytes(), n.to_string())).boxed(),
        PgType::Int4 => any::<i32>().prop_map(|n| Value::new(n.to_be_bytes(), n.to_string())).boxed(),
        PgType::Int8 => any::<i64>().prop_map(|n| Value::new(n.to_be_bytes(), n.to_string())).boxed(),
        PgType::Oid => any::<u32>().prop_map(|n| Value::new(n.to_be_bytes(), n.to_string())).boxed(),
        PgType::Float4 => proptest::num::f32::ANY.prop_map(|n| Value::new(n.to_be_bytes(), float(n))).boxed(),
        PgType::Float8 => proptest::num::f64::ANY.prop_map(|n| Value::new(n.to_be_bytes(), float(n))).boxed(),
        PgType::Numeric(declared) => numeric(*declared),
        PgType::Text | PgType::Json | PgType::Enum => {
            text().prop_map(|text| Value::new(&text, &text)).boxed()
        }
        PgType::Jsonb => text().prop_map(|text| Value::new(format!("\u{1}{text}"), &text)).boxed(),
        PgType::Bytea => proptest::collection::vec(any::<u8>(), 0..200)
            .prop_map(|bytes| {
                let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                Value::new(&bytes, format!("\\x{digits}"))
            })
            .boxed(),
        PgType::Uuid => any::<[u8; 16]>()
            .prop_map(|bytes| {
                let mut text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                for at in [20, 16, 12, 8] {
                    text.insert(at, '-');
                }
                Value::new(bytes, text)
            })
            .boxed(),
        PgType::Date => dates(),
        PgType::Timestamp => timestamps(""),
        PgType::TimestampTz => timestamps("+00"),
        PgType::Time => {
            (0..=86_400_000_000i64).prop_map(|micros| Value::new(micros.to_be_bytes(), clock(micros))).boxed()
        }
        PgType::Hstore => hstore(),
        PgType::Vector => vector(any::<[u8; 4]>().prop_map(|bytes| {
            let number = f32::from_be_bytes(bytes);
            (bytes.to_vec(), number)
        })),
        // Multiples of an eighth up to 128, by their sign, exponent and ten bits of fraction.
        PgType::HalfVec => vector((0..1024u16, any::<bool>()).prop_map(|(eighths, negative)| {
            let number = f32::from(eighths) / 8.0;
            let bits = number.to_bits();
            let exponent = (bits >> 23 & 0xff) as i32 - 127;
            let half =
                if eighths == 0 { 0 } else { ((exponent + 15) << 10) as u16 | (bits >> 13 & 0x3ff) as u16 };
            let (half, number) = if negative { (half | 0x8000, -number) } else { (half, number) };
            (half.to_be_bytes().to_vec(), number)
        })),
        PgType::Array(_) | PgType::Other(_) => unreachable!("not a scalar with a binary form"),
    }
}

fn hstore() -> BoxedStrategy<Value> {
    let pairs = proptest::collection::btree_map(text(), proptest::option::weighted(0.8, text()), 0..4);
    let quote = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    pairs
        .prop_map(move |pairs| {
            let mut binary = (pairs.len() as i32).to_be_bytes().to_vec();
            let mut texts = Vec::new();
            for (key, value) in &pairs {
                for field in [Some(key), value.as_ref()] {
                    binary.extend(field.map_or(-1, |field| field.len() as i32).to_be_bytes());
                    binary.extend(field.map_or(&[][..], |field| field.as_bytes()));
                }
                let value = value.as_ref().map_or("NULL".to_owned(), |value| quote(value));
                texts.push(format!("{}=>{value}", quote(key)));
            }
            Value::new(binary, texts.join(", "))
        })
        .boxed()
}

fn vector(element: impl Strategy<Value = (Vec<u8>, f32)> + 'static) -> BoxedStrategy<Value> {
    proptest::collection::vec(element, 1..5)
        .prop_map(|elements| {
            let mut binary = (elements.len() as u16).to_be_bytes().to_vec();
            binary.extend([0, 0]);
            binary.extend(elements.iter().flat_map(|(bytes, _)| bytes));
            let texts: Vec<String> = elements.iter().map(|(_, number)| float(*number)).collect();
            Value::new(binary, format!("[{}]", texts.join(",")))
        })
        .boxed()
}

fn text() -> impl Strategy<Value = String> {
    proptest::string::string_regex("[^\u{0}]{0,40}|[a-z ,{}\"\\\\]{0,12}|(?i:null)|[x]{120,140}").unwrap()
}

fn float<T: std::fmt::LowerExp + Copy + Into<f64>>(number: T) -> String {
    let wide: f64 = number.into();
    match wide {
        _ if wide.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        _ => format!("{number:e}"),
    }
}

/// Decimal digits first, the groups of the binary form cut out of them.
fn numeric(declared: Option<(u16, i16)>) -> BoxedStrategy<Value> {
    let (whole, scale) = match declared {
        None => (0..40usize, 0..40usize),
        Some((precision, scale)) => {
            let places = usize::try_from(scale).unwrap_or(0);
            let whole = (i32::from(precision) - i32::from(scale)) as usize;
            (0..whole + 1, places..places + 1)
        }
    };
    let finite = (whole, scale, any::<bool>()).prop_flat_map(|(whole, scale, negative)| {
        let digits = |count: usize| proptest::collection::vec(prop_oneof![3 => 0..10u8, 1 => Just(0)], count);
        (digits(whole), digits(scale), Just(negative))
            .prop_map(|(whole, fraction, negative)| finite_numeric(&whole, &fraction, negative))
    });
    let special = prop_oneof![
        Just(Value::new([0, 0, 0, 0, 0xc0, 0, 0, 0], "NaN")),
        Just(Value::new([0, 0, 0, 0, 0xd0, 0, 0, 0], "Infinity")),
        Just(Value::new([0, 0, 0, 0, 0xf0, 0, 0, 0], "-Infinity")),
    ];
    prop_oneof![9 => finite, 1 => special].boxed()
}

fn finite_numeric(whole: &[u8], fraction: &[u8], negative: bool) -> Value {
    let write = |digits: &[u8]| digits.iter().map(|digit| char::from(b'0' + digit)).collect::<String>();
    let leading = whole.iter().take_while(|digit| **digit == 0).count();
    let whole = &whole[leading..];
    let zero = whole.iter().chain(fraction).all(|digit| *digit == 0);
    let mut text = if negative && !zero { "-".to_owned() } else { String::new() };
    text.push_str(&if whole.is_empty() { "0".to_owned() } else { write(whole) });
    if !fraction.is_empty() {
        text.push('.');
        text.push_str(&write(fraction));
    }
    // Pad both sides of the point to groups of four, then strip zero groups at both ends as PostgreSQL does.
    let mut digits = vec![0; (4 - whole.len() % 4) % 4];
    digits.extend(whole);
    let mut weight = (digits.len() / 4) as i16 - 1;
    digits.extend(fraction);
    digits.resize(digits.len().div_ceil(4) * 4, 0);
    let mut groups: Vec<u16> = digits
        .chunks(4)
        .map(|group| group.iter().fold(0, |sum, digit| sum * 10 + u16::from(*digit)))
        .collect();
    while groups.last() == Some(&0) {
        groups.pop();
    }
    while groups.first() == Some(&0) {
        groups.remove(0);
        weight -= 1;
    }
    if groups.is_empty() {
        weight = 0;
    }
    let sign = if negative && !zero { 0x4000u16 } else { 0 };
    let mut binary = Vec::new();
    for part in [groups.len() as u16, weight as u16, sign, fraction.len() as u16].iter().chain(&groups) {
        binary.extend(part.to_be_bytes());
    }
    Value::new(binary, text)
}

fn leap(year: i64) -> bool {
    year.rem_euclid(4) == 0 && (year.rem_euclid(100) != 0 || year.rem_euclid(400) == 0)
}

/// Days since 2000-01-01, counted year by year and month by month.
fn days_since_2000(year: i64, month: i64, day: i64) -> i64 {
    let years: i64 = if year >= 2000 {
        (2000..year).map(|year| 365 + i64::from(leap(year))).sum()
    } else {
        -(year..2000).map(|year| 365 + i64::from(leap(year))).sum::<i64>()
    };
    let february = 28 + i64::from(leap(year));
    let months = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    years + months.iter().take(month as usize - 1).sum::<i64>() + day - 1
}

fn calendar() -> impl Strategy<Value = (i64, i64, i64)> {
    let year = prop_oneof![4 => 1900..2100i64, 2 => -4712..12_000i64, 1 => 290_000..294_200i64];
    (year, 1..13i64, 1..32i64).prop_map(|(year, month, day)| {
        let days = [31, if leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        (year, month, day.min(days[month as usize - 1]))
    })
}

/// The date's digits and the era that stands behind everything else.
fn date_text((year, month, day): (i64, i64, i64)) -> (String, &'static str) {
    let (shown, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    (format!("{shown:04}-{month:02}-{day:02}"), era)
}

fn dates() -> BoxedStrategy<Value> {
    let finite = calendar().prop_map(|date| {
        let days = days_since_2000(date.0, date.1, date.2) as i32;
        let (digits, era) = date_text(date);
        Value::new(days.to_be_bytes(), format!("{digits}{era}"))
    });
    let infinite = prop_oneof![
        Just(Value::new(i32::MAX.to_be_bytes(), "infinity")),
        Just(Value::new(i32::MIN.to_be_bytes(), "-infinity")),
    ];
    prop_oneof![9 => finite, 1 => infinite].boxed()
}

fn timestamps(zone: &'static str) -> BoxedStrategy<Value> {
    let finite = (calendar(), 0..86_400_000_000i64, 0..7u32).prop_map(move |(date, micros, digits)| {
        let unit = 10i64.pow(6 - digits);
        let micros = micros / unit * unit;
        let days = days_since_2000(date.0, date.1, date.2);
        let (digits, era) = date_text(date);
        let text = format!("{digits} {}{zone}{era}", clock(micros));
        Value::new((days * 86_400_000_000 + micros).to_be_bytes(), text)
    });
    let infinite = prop_oneof![
        Just(Value::new(i64::MAX.to_be_bytes(), "infinity")),
        Just(Value::new(i64::MIN.to_be_bytes(), "-infinity")),
    ];
    prop_oneof![9 => finite, 1 => infinite].boxed()
}

fn clock(micros: i64) -> String {
    let seconds = micros / 1_000_000;
    let mut text = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if micros % 1_000_000 != 0 {
        text.push_str(format!(".{:06}", micros % 1_000_000).trim_end_matches('0'));
    }
    text
}

fn array_of(element: &PgType) -> impl Strategy<Value = Value> + use<> {
    let elements = proptest::collection::vec(proptest::option::weighted(0.8, value_of(element)), 0..5);
    (elements, prop_oneof![4 => Just(1i32), 1 => -3..4i32])
        .prop_map(|(elements, lower)| array(&elements, lower))
}

/// A one-dimensional array with a lower bound, in both forms.
pub fn array(elements: &[Option<Value>], lower: i32) -> Value {
    let mut binary = Vec::new();
    let mut texts = Vec::new();
    let dimensions = i32::from(!elements.is_empty());
    let has_null = i32::from(elements.contains_none());
    for part in [dimensions, has_null, 25] {
        binary.extend(part.to_be_bytes());
    }
    if !elements.is_empty() {
        binary.extend((elements.len() as i32).to_be_bytes());
        binary.extend(lower.to_be_bytes());
    }
    for element in elements {
        match element {
            None => {
                binary.extend((-1i32).to_be_bytes());
                texts.push(b"NULL".to_vec());
            }
            Some(value) => {
                binary.extend((value.binary.len() as i32).to_be_bytes());
                binary.extend(&value.binary);
                texts.push(quoted(&value.text));
            }
        }
    }
    let mut text = Vec::new();
    if lower != 1 && !elements.is_empty() {
        text.extend(format!("[{lower}:{}]=", lower + elements.len() as i32 - 1).into_bytes());
    }
    text.push(b'{');
    text.extend(texts.join(&b','));
    text.push(b'}');
    Value { binary, text }
}

trait ContainsNone {
    fn contains_none(&self) -> bool;
}

impl<T> ContainsNone for [Option<T>] {
    fn contains_none(&self) -> bool {
        self.iter().any(Option::is_none)
    }
}

/// Quotes an element where `array_out` does.
fn quoted(text: &[u8]) -> Vec<u8> {
    let needed = text.is_empty()
        || text.eq_ignore_ascii_case(b"null")
        || text.iter().any(|byte| b"\"\\{},".contains(byte) || byte.is_ascii_whitespace() || *byte == 0x0b);
    if !needed {
        return text.to_vec();
    }
    let mut quoted = vec![b'"'];
    for byte in text {
        if b"\"\\".contains(byte) {
            quoted.push(b'\\');
        }
        quoted.push(*byte);
    }
    quoted.push(b'"');
    quoted
}

/// A tuple of `COPY ... (FORMAT binary)`.
pub fn copy_tuple(fields: &[Option<&[u8]>]) -> Vec<u8> {
    let mut tuple = (fields.len() as u16).to_be_bytes().to_vec();
    for field in fields {
        match field {
            None => tuple.extend((-1i32).to_be_bytes()),
            Some(bytes) => {
                tuple.extend((bytes.len() as i32).to_be_bytes());
                tuple.extend(*bytes);
            }
        }
    }
    tuple
}
