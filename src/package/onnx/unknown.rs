//! What a model carries and [`super::proto`] does not know: it would be lost when the model is written again.

/// A message's name, its fields that are values, and those that are messages, by number.
type Known = (&'static str, &'static [u32], &'static [(u32, &'static str)]);

/// As in [`super::proto`].
const KNOWN: &[Known] = &[
    (
        "ModelProto",
        &[1, 2, 3, 4, 5, 6],
        &[
            (7, "GraphProto"),
            (8, "OperatorSetIdProto"),
            (14, "StringStringEntryProto"),
            (20, "TrainingInfoProto"),
            (25, "FunctionProto"),
            (26, "DeviceConfigurationProto"),
        ],
    ),
    ("OperatorSetIdProto", &[1, 2], &[]),
    ("StringStringEntryProto", &[1, 2], &[]),
    (
        "TrainingInfoProto",
        &[],
        &[(1, "GraphProto"), (2, "GraphProto"), (3, "StringStringEntryProto"), (4, "StringStringEntryProto")],
    ),
    (
        "FunctionProto",
        &[1, 4, 5, 6, 8, 10, 13],
        &[
            (7, "NodeProto"),
            (9, "OperatorSetIdProto"),
            (11, "AttributeProto"),
            (12, "ValueInfoProto"),
            (14, "StringStringEntryProto"),
        ],
    ),
    ("DeviceConfigurationProto", &[1, 2, 3], &[]),
    (
        "GraphProto",
        &[2, 10],
        &[
            (1, "NodeProto"),
            (5, "TensorProto"),
            (11, "ValueInfoProto"),
            (12, "ValueInfoProto"),
            (13, "ValueInfoProto"),
            (14, "TensorAnnotation"),
            (15, "SparseTensorProto"),
            (16, "StringStringEntryProto"),
        ],
    ),
    ("TensorAnnotation", &[1], &[(2, "StringStringEntryProto")]),
    (
        "NodeProto",
        &[1, 2, 3, 4, 6, 7, 8],
        &[(5, "AttributeProto"), (9, "StringStringEntryProto"), (10, "NodeDeviceConfigurationProto")],
    ),
    ("NodeDeviceConfigurationProto", &[1, 3], &[(2, "ShardingSpecProto")]),
    ("ShardingSpecProto", &[1, 2], &[(3, "IntIntListEntryProto"), (4, "ShardedDimProto")]),
    ("IntIntListEntryProto", &[1, 2], &[]),
    ("ShardedDimProto", &[1], &[(2, "SimpleShardedDimProto")]),
    ("SimpleShardedDimProto", &[1, 2, 3], &[]),
    (
        "AttributeProto",
        &[1, 2, 3, 4, 7, 8, 9, 13, 20, 21],
        &[
            (5, "TensorProto"),
            (6, "GraphProto"),
            (10, "TensorProto"),
            (11, "GraphProto"),
            (14, "TypeProto"),
            (15, "TypeProto"),
            (22, "SparseTensorProto"),
            (23, "SparseTensorProto"),
        ],
    ),
    (
        "TensorProto",
        &[1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14],
        &[(3, "TensorSegment"), (13, "StringStringEntryProto"), (16, "StringStringEntryProto")],
    ),
    ("TensorSegment", &[1, 2], &[]),
    ("SparseTensorProto", &[3], &[(1, "TensorProto"), (2, "TensorProto")]),
    ("ValueInfoProto", &[1, 3], &[(2, "TypeProto"), (4, "StringStringEntryProto")]),
    (
        "TypeProto",
        &[6],
        &[
            (1, "TensorType"),
            (4, "ElementType"),
            (5, "MapType"),
            (7, "OpaqueType"),
            (8, "TensorType"),
            (9, "ElementType"),
        ],
    ),
    ("TensorType", &[1], &[(2, "TensorShape")]),
    ("TensorShape", &[], &[(1, "Dimension")]),
    ("Dimension", &[1, 2, 3], &[]),
    ("ElementType", &[], &[(1, "TypeProto")]),
    ("MapType", &[1], &[(2, "TypeProto")]),
    ("OpaqueType", &[1, 2], &[]),
];

/// The first field of a model that this program does not know, as `Message.number`. Bytes that are no message have
/// none: decoding refuses them.
pub fn first(model: &[u8]) -> Option<String> {
    in_message("ModelProto", model)
}

fn in_message(name: &str, mut bytes: &[u8]) -> Option<String> {
    let (_, values, messages) = KNOWN.iter().find(|(known, ..)| *known == name)?;
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let (number, wire) = ((key >> 3) as u32, key & 7);
        let content = match wire {
            0 => {
                varint(&mut bytes)?;
                None
            }
            1 => {
                take(&mut bytes, 8)?;
                None
            }
            2 => {
                let length = varint(&mut bytes)?;
                Some(take(&mut bytes, length)?)
            }
            5 => {
                take(&mut bytes, 4)?;
                None
            }
            _ => return Some(format!("{name}.{number}")),
        };
        match (messages.iter().find(|(known, _)| *known == number), content) {
            (Some((_, inner)), Some(content)) => {
                if let Some(found) = in_message(inner, content) {
                    return Some(found);
                }
            }
            (None, _) if values.contains(&number) => {}
            _ => return Some(format!("{name}.{number}")),
        }
    }
    None
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 127) << shift;
        if byte < 128 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(bytes: &mut &'a [u8], length: u64) -> Option<&'a [u8]> {
    let (content, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
    *bytes = rest;
    Some(content)
}
