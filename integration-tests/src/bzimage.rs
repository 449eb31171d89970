//! Takes the uncompressed kernel, an ELF file, out of a bzImage (kernel documentation, "The Linux/x86 Boot Protocol",
//! `payload_offset` and `payload_length`).
//!
//! LZ4, what Debian's cloud kernel uses, is decompressed here; other formats by the program of that name.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::error::{Context, Error, Result};
use crate::packages::{self, GZIP, Tool, XZ, ZSTD};
use crate::progress::Progress;

const SETUP_SECTS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// First boot protocol version whose header names the payload.
const VERSION_WITH_PAYLOAD: u16 = 0x0208;

/// An uncompressed block of LZ4's legacy format has at most this many bytes.
const LZ4_BLOCK_MAX: usize = 8 << 20;

/// Largest kernel that is believed; Debian's has about 60 MiB.
const KERNEL_MAX: usize = 512 << 20;

/// Returns the `vmlinux` inside `image`. `name` is used in messages.
pub fn extract_vmlinux(name: &str, image: &[u8], progress: &Progress) -> Result<Vec<u8>> {
    let problem = |problem: &str| Error::Image { file: name.to_owned(), problem: problem.to_owned() };
    if image.get(MAGIC..MAGIC + 4) != Some(b"HdrS") {
        return Err(problem("not a bzImage: no HdrS at 0x202"));
    }
    let version = u16_at(image, VERSION).unwrap_or(0);
    if version < VERSION_WITH_PAYLOAD {
        return Err(problem(&format!("boot protocol {version:#06x} does not say where the payload is")));
    }
    let setup_sects = match image.get(SETUP_SECTS) {
        None | Some(0) => 4,
        Some(&sectors) => usize::from(sectors),
    };
    let (Some(offset), Some(length)) = (u32_at(image, PAYLOAD_OFFSET), u32_at(image, PAYLOAD_LENGTH)) else {
        return Err(problem("the header is cut short"));
    };
    let start = (setup_sects + 1) * 512 + offset;
    let payload = start.checked_add(length).and_then(|end| image.get(start..end));
    let payload = payload.ok_or_else(|| problem("the payload reaches past the end of the file"))?;
    let kernel = decompress(name, payload, progress)?;
    if kernel.get(..4) != Some(b"\x7fELF") {
        return Err(problem("the payload is not an ELF file"));
    }
    Ok(kernel)
}

fn decompress(name: &str, payload: &[u8], progress: &Progress) -> Result<Vec<u8>> {
    let problem = |problem: String| Error::Image { file: name.to_owned(), problem };
    // All formats but gzip are followed by the size of the result.
    let split = payload.len().saturating_sub(4);
    let (body, size) = (&payload[..split], u32_at(payload, split).unwrap_or(0));
    let kernel = match payload {
        [0x7f, b'E', b'L', b'F', ..] => return Ok(payload.to_vec()),
        [0x1f, 0x8b, ..] => return pipe_through(GZIP, &["-dc"], payload, progress),
        [0x02, 0x21, 0x4c, 0x18, blocks @ ..] => {
            unlz4_legacy(&blocks[..blocks.len().saturating_sub(4)], size)
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => return pipe_through(XZ, &["-dc"], body, progress),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => return pipe_through(ZSTD, &["-dcq"], body, progress),
        [0x5d, 0, 0, ..] => return pipe_through(XZ, &["-dc", "--format=lzma"], body, progress),
        _ => Err(format!("compression {:02x?} is not supported", payload.get(..4).unwrap_or(payload))),
    };
    kernel.map_err(problem)
}

/// Decompresses the blocks of an LZ4 legacy frame (after its magic): each is a length and that many bytes.
fn unlz4_legacy(mut blocks: &[u8], size: usize) -> std::result::Result<Vec<u8>, String> {
    if size > KERNEL_MAX {
        return Err(format!("the kernel claims {size} bytes"));
    }
    let mut kernel = vec![0; size];
    let mut filled = 0;
    while !blocks.is_empty() {
        let length = u32_at(blocks, 0).ok_or("an LZ4 block's length is cut short")?;
        let end = length.checked_add(4).filter(|end| *end <= blocks.len());
        let end = end.ok_or_else(|| format!("an LZ4 block of {length} bytes reaches past the payload"))?;
        let room = size.min(filled + LZ4_BLOCK_MAX);
        let written = lz4_flex::block::decompress_into(&blocks[4..end], &mut kernel[filled..room])
            .map_err(|error| format!("LZ4 block for offset {filled}: {error}"))?;
        filled += written;
        blocks = &blocks[end..];
    }
    if filled != size {
        return Err(format!("the kernel has {filled} bytes instead of {size}"));
    }
    Ok(kernel)
}

/// Feeds `input` to a decompressor, which is installed if it is not there, and returns what it prints.
pub fn pipe_through(tool: Tool, arguments: &[&str], input: &[u8], progress: &Progress) -> Result<Vec<u8>> {
    packages::require(&[tool], progress)?;
    let program = tool.program;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .doing(|| format!("cannot start {program} to decompress"))?;
    let stdin = child.stdin.take();
    let output = std::thread::scope(|scope| {
        // A decompressor that stops early closes its input; its own message says why, not our EPIPE.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
        child.wait_with_output()
    })
    .doing(|| format!("cannot read what {program} decompressed"))?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        let detail = format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        Err(Error::Command { command: format!("{program} {}", arguments.join(" ")), detail })
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extract(name: &str, image: &[u8]) -> Result<Vec<u8>> {
        extract_vmlinux(name, image, &Progress::new())
    }

    /// A bzImage whose payload is `payload`, with one setup sector.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[SETUP_SECTS] = 1;
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[VERSION..VERSION + 2].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16_u32.to_le_bytes());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(&[0xcc; 16]);
        image.extend_from_slice(payload);
        image
    }

    fn lz4(blocks: &[&[u8]]) -> Vec<u8> {
        let mut payload = vec![0x02, 0x21, 0x4c, 0x18];
        for block in blocks {
            let packed = lz4_flex::block::compress(block);
            payload.extend_from_slice(&(packed.len() as u32).to_le_bytes());
            payload.extend_from_slice(&packed);
        }
        let size: usize = blocks.iter().map(|block| block.len()).sum();
        payload.extend_from_slice(&(size as u32).to_le_bytes());
        payload
    }

    #[test]
    fn the_kernel_comes_out_of_several_lz4_blocks() {
        let image = image(&lz4(&[b"\x7fELF and some", b" more of it"]));
        assert_eq!(extract("k", &image).unwrap(), b"\x7fELF and some more of it");
    }

    #[test]
    fn a_payload_that_is_no_elf_file_is_refused() {
        let error = extract("k", &image(&lz4(&[b"something else"]))).unwrap_err();
        assert_eq!(error.to_string(), "k: the payload is not an ELF file");
    }

    #[test]
    fn a_payload_past_the_end_of_the_file_is_refused() {
        let mut image = image(&lz4(&[b"\x7fELF"]));
        image.pop();
        let error = extract("k", &image).unwrap_err();
        assert_eq!(error.to_string(), "k: the payload reaches past the end of the file");
    }

    #[test]
    fn a_damaged_lz4_block_is_an_error_and_no_panic() {
        let good = image(&lz4(&[b"\x7fELF and some more, more, more"]));
        for at in 1040..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            let _ = extract("k", &bad);
        }
        assert!(extract("k", &image(&[0x02, 0x21, 0x4c, 0x18, 9, 0, 0])).is_err());
    }

    #[test]
    fn an_unknown_compression_is_named() {
        let error = extract("k", &image(b"BZh91234")).unwrap_err();
        assert!(error.to_string().contains("[42, 5a, 68, 39]"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_kernel_is_refused() {
        assert!(extract("k", b"").is_err());
        assert!(extract("k", &[0; 4096]).is_err());
    }
}
