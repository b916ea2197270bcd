//! Proto JSON: field names in lowerCamelCase, enums by name, 64-bit integers as text (protobuf manual: "ProtoJSON Format").
//!
//! Fields that hold their default are written, so that scripts need not tell 0 from absent; absent messages are left out.

use std::sync::LazyLock;

use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::proto::DESCRIPTORS;

/// A message could not be written. It is of this crate's protos, so this is a fault in the program.
#[derive(Debug, thiserror::Error)]
#[error("{name} could not be written as JSON: {reason}")]
pub struct JsonError {
    name: String,
    reason: String,
}

static POOL: LazyLock<Result<DescriptorPool, String>> =
    LazyLock::new(|| DescriptorPool::decode(DESCRIPTORS).map_err(|error| error.to_string()));

/// The proto JSON of a message as a value; its keys are sorted.
pub fn to_json<M: Message + Name>(message: &M) -> Result<Value, JsonError> {
    serde_json::to_value(Written::new(message)?).map_err(|error| failed::<M>(&error))
}

/// The proto JSON of a message as indented text, in the order of the proto.
pub fn to_json_text<M: Message + Name>(message: &M) -> Result<String, JsonError> {
    serde_json::to_string_pretty(&Written::new(message)?).map_err(|error| failed::<M>(&error))
}

/// The proto JSON of a message on one line, for a stream of messages.
pub fn to_json_line<M: Message + Name>(message: &M) -> Result<String, JsonError> {
    serde_json::to_string(&Written::new(message)?).map_err(|error| failed::<M>(&error))
}

/// The proto JSON of a message written as YAML, in the order of the proto.
pub fn to_yaml<M: Message + Name>(message: &M) -> Result<String, JsonError> {
    serde_saphyr::to_string(&Written::new(message)?).map_err(|error| failed::<M>(&error))
}

fn failed<M: Name>(reason: &dyn std::fmt::Display) -> JsonError {
    JsonError { name: M::full_name(), reason: reason.to_string() }
}

/// A message that serialises as proto JSON.
struct Written(DynamicMessage);

impl Written {
    fn new<M: Message + Name>(message: &M) -> Result<Self, JsonError> {
        let pool = POOL.as_ref().map_err(|reason| failed::<M>(reason))?;
        let descriptor =
            pool.get_message_by_name(&M::full_name()).ok_or_else(|| failed::<M>(&"it has no descriptor"))?;
        let mut dynamic = DynamicMessage::new(descriptor);
        dynamic.transcode_from(message).map_err(|error| failed::<M>(&error))?;
        Ok(Self(dynamic))
    }
}

impl Serialize for Written {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize_with_options(serializer, &SerializeOptions::new().skip_default_fields(false))
    }
}
