//! NumPy's `.npy` files and the arrays of `.npz` files (NEP 1): the header, and the elements as they lie there.
//!
//! The format is a Python dictionary of three keys before plain bytes. The crates that read it bring a parser of
//! Python's literals with them (fourteen crates), more than the format itself.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use crate::cell::ElementType;
use crate::error::{Context, Error, Result};

/// How a file begins.
const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// Headers are a line of text.
const LONGEST_HEADER: usize = 1 << 16;

/// What a file says of its array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// NumPy's name of the element type, as `<f4`.
    pub descr: String,
    /// Whether the first index changes fastest.
    pub fortran: bool,
    /// Dimensions.
    pub shape: Vec<u64>,
}

/// An array: its elements in little-endian order, the last index changing fastest.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Dimensions.
    pub shape: Vec<u64>,
    /// The elements.
    pub elements: Elements,
}

/// An array's elements.
#[derive(Debug, Clone, PartialEq)]
pub enum Elements {
    /// Of a fixed width, little-endian.
    Bytes(Vec<u8>),
    /// Texts.
    Texts(Vec<String>),
}

impl Header {
    /// Reads the header of a `.npy` file, or of an array of a `.npz` file.
    ///
    /// # Errors
    /// As [`read`], for the header alone.
    pub fn of(path: &Path, array: Option<&str>) -> Result<Self> {
        open(path, array, |source| Self::read(source))
    }

    fn read(source: &mut dyn Read) -> Result<Self> {
        let mut start = [0; 8];
        source.read_exact(&mut start).context("it is too short for a header")?;
        if start[..6] != *MAGIC {
            return Err(Error::new("it is no .npy file: it does not begin with NumPy's mark"));
        }
        let mut length = [0; 4];
        let digits = if start[6] == 1 { 2 } else { 4 };
        source.read_exact(&mut length[..digits]).context("it is cut short within its header")?;
        let length = u32::from_le_bytes(length) as usize;
        if length > LONGEST_HEADER {
            return Err(Error::new(format!("its header says that it has {length} bytes")));
        }
        let mut text = vec![0; length];
        source.read_exact(&mut text).context("it is cut short within its header")?;
        let text = String::from_utf8(text).context("its header is not UTF-8")?;
        parse(&text).ok_or_else(|| Error::new(format!("its header is not understood: {}", text.trim())))
    }

    /// Elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().copied().fold(1, u64::saturating_mul)
    }

    /// Bytes of one element in the file; `None` for a type that is not read.
    fn width(&self) -> Option<usize> {
        let count: usize = self.descr.get(2..)?.parse().ok()?;
        match self.descr.as_bytes().get(1)? {
            // Texts are of four bytes a letter.
            b'U' => count.checked_mul(4),
            b'f' | b'i' | b'u' | b'b' | b'S' | b'V' | b'c' => Some(count),
            _ => None,
        }
    }

    /// Whether the elements are what a tensor of this type holds. NumPy has no name for bfloat16: whoever saves one
    /// leaves two bytes without a meaning, which are taken as they are.
    pub fn holds(&self, element: ElementType) -> bool {
        let (kind, width) = (self.descr.get(1..2).unwrap_or_default(), self.width().unwrap_or(0));
        let wanted = match element {
            ElementType::String => return kind == "U" || kind == "S",
            ElementType::Bool => "b",
            ElementType::BFloat16 => return matches!(kind, "V" | "u") && width == 2,
            element if element.is_float() => "f",
            ElementType::UInt8 | ElementType::UInt16 | ElementType::UInt32 | ElementType::UInt64 => "u",
            _ => "i",
        };
        kind == wanted && width == element.size()
    }

    /// NumPy's word for the element type, as people write it: `float32`.
    pub fn word(&self) -> String {
        let bits = self.width().unwrap_or(0) * 8;
        match self.descr.get(1..2).unwrap_or_default() {
            "f" => format!("float{bits}"),
            "i" => format!("int{bits}"),
            "u" => format!("uint{bits}"),
            "c" => format!("complex{bits}"),
            "b" => "bool".to_owned(),
            "U" | "S" => "string".to_owned(),
            "O" => "object".to_owned(),
            _ => self.descr.clone(),
        }
    }
}

/// Reads a `.npy` file, or an array of a `.npz` file.
///
/// # Errors
/// A file that cannot be read, is none of the kind, has no array of that name, is shorter than it says, or holds
/// Python objects.
pub fn read(path: &Path, array: Option<&str>) -> Result<Array> {
    open(path, array, |source| {
        let header = Header::read(source)?;
        let width = header.width().ok_or_else(|| {
            Error::new(format!("its elements are of the type `{}`, which is not read", header.descr))
                .hint("save an array of numbers, truth values or texts")
        })?;
        let wanted = usize::try_from(header.elements()).ok().and_then(|count| count.checked_mul(width));
        let wanted = wanted.ok_or_else(|| Error::new(format!("its shape {:?} is too large", header.shape)))?;
        if width == 0 && header.elements() > 0 {
            return Err(Error::new(format!("its elements are of the type `{}`, without a byte each", header.descr)));
        }
        // Not allocated at once: what a header says may be more than any memory.
        let mut bytes = Vec::new();
        source.take(wanted as u64).read_to_end(&mut bytes).context("its elements cannot be read")?;
        if bytes.len() < wanted {
            return Err(Error::new(format!("it has {} bytes of elements and says {wanted}", bytes.len())));
        }
        if header.fortran {
            bytes = in_row_order(&bytes, &header.shape, width);
        }
        let big = header.descr.starts_with('>');
        let elements = match &header.descr[1..2] {
            "U" => Elements::Texts(bytes.chunks(width.max(1)).map(|letters| text_of(letters, big)).collect()),
            "S" => Elements::Texts(bytes.chunks(width.max(1)).map(bytes_of).collect()),
            kind => {
                if big && width > 1 && kind != "V" {
                    bytes.chunks_mut(width).for_each(<[u8]>::reverse);
                }
                Elements::Bytes(bytes)
            }
        };
        Ok(Array { shape: header.shape, elements })
    })
}

fn open<T>(path: &Path, array: Option<&str>, read: impl FnOnce(&mut dyn Read) -> Result<T>) -> Result<T> {
    let failed = || match array {
        None => format!("cannot read the array `{}`", path.display()),
        Some(array) => format!("cannot read the array `{array}` of `{}`", path.display()),
    };
    if std::fs::metadata(path).with_context(failed)?.is_dir() {
        return Err(Error::new(failed()).because(std::io::Error::other("it is a folder")));
    }
    let mut file = BufReader::new(File::open(path).with_context(failed)?);
    let Some(array) = array else { return read(&mut file).with_context(failed) };
    let mut archive = zip::ZipArchive::new(file).with_context(failed)?;
    let name = format!("{array}.npy");
    if archive.index_for_name(&name).is_none() {
        let names: Vec<_> = archive.file_names().flatten().map(|name| name.into_owned()).collect();
        let mut names: Vec<_> = names.iter().map(|name| name.trim_end_matches(".npy")).collect();
        names.sort_unstable();
        let suggestion = crate::yaml::suggest(array, &names);
        return Err(Error::new(failed()).because(std::io::Error::other(format!("it has no such array{suggestion}"))));
    }
    let mut entry = archive.by_name(&name).with_context(failed)?;
    read(&mut entry).with_context(failed)
}

/// The three keys of the dictionary, in any order.
fn parse(text: &str) -> Option<Header> {
    let after = |key: &str| {
        let (_, rest) = text.split_once(&format!("'{key}'")).or_else(|| text.split_once(&format!("\"{key}\"")))?;
        rest.trim_start().strip_prefix(':').map(str::trim_start)
    };
    let descr = after("descr")?;
    let quote = descr.chars().next().filter(|quote| ['\'', '"'].contains(quote))?;
    let descr = descr[1..].split(quote).next()?.to_owned();
    if !descr.starts_with(['<', '>', '|', '=']) || descr.len() < 2 || !descr.is_ascii() {
        return None;
    }
    let order = after("fortran_order")?;
    let fortran = if order.starts_with("True") { true } else { order.starts_with("False").then_some(false)? };
    let shape = after("shape")?.strip_prefix('(')?.split_once(')')?.0;
    let sizes = shape.split(',').map(str::trim).filter(|size| !size.is_empty());
    let shape = sizes.map(|size| size.trim_end_matches('L').parse().ok()).collect::<Option<_>>()?;
    Some(Header { descr, fortran, shape })
}

/// From the first index changing fastest to the last.
fn in_row_order(bytes: &[u8], shape: &[u64], width: usize) -> Vec<u8> {
    let sizes: Vec<usize> = shape.iter().map(|size| *size as usize).collect();
    let mut ordered = Vec::with_capacity(bytes.len());
    let mut index = vec![0; sizes.len()];
    for _ in 0..bytes.len() / width.max(1) {
        let place = index.iter().zip(&sizes).rev().fold(0, |place, (at, size)| place * size + at);
        ordered.extend_from_slice(&bytes[place * width..(place + 1) * width]);
        for axis in (0..sizes.len()).rev() {
            index[axis] += 1;
            if index[axis] < sizes[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    ordered
}

/// A text of four bytes a letter, filled up with zeros.
fn text_of(letters: &[u8], big: bool) -> String {
    let letter = |bytes: &[u8]| {
        let bytes: [u8; 4] = bytes.try_into().unwrap_or_default();
        let number = if big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) };
        char::from_u32(number).unwrap_or(char::REPLACEMENT_CHARACTER)
    };
    let text: String = letters.chunks(4).map(letter).collect();
    text.trim_end_matches('\0').to_owned()
}

fn bytes_of(letters: &[u8]) -> String {
    String::from_utf8_lossy(letters).trim_end_matches('\0').to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file as NumPy writes it.
    fn npy(descr: &str, fortran: &str, shape: &str, elements: &[u8]) -> Vec<u8> {
        let mut header = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}");
        while !(header.len() + 11).is_multiple_of(64) {
            header.push(' ');
        }
        header.push('\n');
        let length = u16::try_from(header.len()).unwrap().to_le_bytes();
        [&MAGIC[..], &[1, 0], &length, header.as_bytes(), elements].concat()
    }

    fn read_bytes(bytes: &[u8]) -> Result<Array> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        read(file.path(), None)
    }

    #[test]
    fn orders_and_byte_orders_come_out_alike() {
        let row: Vec<u8> = (0..6_i16).flat_map(i16::to_le_bytes).collect();
        let expected = Array { shape: vec![2, 3], elements: Elements::Bytes(row.clone()) };
        assert_eq!(read_bytes(&npy("<i2", "False", "(2, 3)", &row)).unwrap(), expected);
        let big: Vec<u8> = (0..6_i16).flat_map(i16::to_be_bytes).collect();
        assert_eq!(read_bytes(&npy(">i2", "False", "(2, 3)", &big)).unwrap(), expected);
        let columns: Vec<u8> = [0_i16, 3, 1, 4, 2, 5].into_iter().flat_map(i16::to_le_bytes).collect();
        assert_eq!(read_bytes(&npy("<i2", "True", "(2, 3)", &columns)).unwrap(), expected);
        let scalar = read_bytes(&npy("|u1", "False", "()", &[9])).unwrap();
        assert_eq!(scalar, Array { shape: Vec::new(), elements: Elements::Bytes(vec![9]) });
        let none = read_bytes(&npy("<f4", "True", "(0, 5)", &[])).unwrap();
        assert_eq!(none.shape, [0, 5]);
    }

    #[test]
    fn texts_are_read() {
        let letters: Vec<u8> = "ab\0üc\0".chars().flat_map(|c| u32::from(c).to_le_bytes()).collect();
        let array = read_bytes(&npy("<U3", "False", "(2,)", &letters)).unwrap();
        assert_eq!(array.elements, Elements::Texts(vec!["ab".to_owned(), "üc".to_owned()]));
        let array = read_bytes(&npy("|S2", "False", "(2,)", b"a\0bc")).unwrap();
        assert_eq!(array.elements, Elements::Texts(vec!["a".to_owned(), "bc".to_owned()]));
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        for (bytes, words) in [
            (b"text".to_vec(), "too short"),
            (b"not an array".to_vec(), "NumPy's mark"),
            (npy("<f4", "False", "(3,)", &[0; 8]), "has 8 bytes of elements and says 12"),
            (npy("|O", "False", "(3,)", &[0; 8]), "type `|O`"),
            (npy("<f4", "Maybe", "(3,)", &[0; 12]), "not understood"),
            (npy("<f4", "False", "(-3,)", &[0; 12]), "not understood"),
            (npy("<f4", "False", "(9000000000000000000, 9000000000000000000)", &[]), "too large"),
            (npy("<f4", "False", "(4000000000000,)", &[]), "has 0 bytes"),
        ] {
            let error = read_bytes(&bytes).unwrap_err();
            assert!(error.chain().contains(words), "{}", error.chain());
        }
    }

    #[test]
    fn types_are_compared() {
        let header = |descr: &str| Header { descr: descr.to_owned(), fortran: false, shape: vec![] };
        assert!(header("<f4").holds(ElementType::Float32) && !header("<f4").holds(ElementType::Float64));
        assert!(header("<V2").holds(ElementType::BFloat16) && !header("<f2").holds(ElementType::BFloat16));
        assert!(header("|b1").holds(ElementType::Bool) && !header("|i1").holds(ElementType::UInt8));
        assert!(header("<U0").holds(ElementType::String));
        assert_eq!(header("<f8").word(), "float64");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(descr in "[<>|=]?[fiubUSVcO]?[0-9]{0,20}", shape in "\\(?[0-9, L-]{0,20}\\)?", rest in prop::collection::vec(any::<u8>(), 0..64), fortran in any::<bool>()) {
            let fortran = if fortran { "True" } else { "False" };
            let _ = read_bytes(&npy(&descr, fortran, &shape, &rest));
        }
    }
}
