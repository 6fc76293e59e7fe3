//! Bits, first the least significant of a byte, as RFC 1951 section 3.1.1 packs them.

/// Appends bits to bytes.
#[derive(Debug)]
pub(crate) struct BitWriter<'a> {
    output: &'a mut Vec<u8>,
    held: Held,
}

/// The bits that do not fill a byte yet, or that were not written yet.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    bits: u64,
    count: u32,
}

/// What a write may go beyond the bits it was announced with: it always writes eight bytes.
const SLACK: usize = 8;

impl<'a> BitWriter<'a> {
    /// Writes behind what `output` holds.
    pub(crate) fn new(output: &'a mut Vec<u8>) -> Self {
        Self {
            output,
            held: Held::default(),
        }
    }

    /// How many bits the output holds with those that are not written yet.
    #[cfg(test)]
    pub(crate) fn position(&self) -> u64 {
        self.output.len() as u64 * 8 + u64::from(self.held.count)
    }

    /// Lets `write` write `bits` bits and no more. To know the number first makes every single
    /// write a copy into bytes that are there, with no question of growing.
    pub(crate) fn with_room(&mut self, bits: u64, write: impl FnOnce(&mut Room<'_>)) {
        let start = self.output.len();
        let bytes = (bits / 8) as usize + SLACK + 1;
        self.output.resize(start + bytes, 0);
        let mut room = Room {
            bytes: &mut self.output[start..],
            written: 0,
            held: self.held,
        };
        write(&mut room);
        room.flush();
        let written = room.written;
        self.held = room.held;
        self.output.truncate(start + written);
    }

    /// Fills the last byte with zeros.
    pub(crate) fn align(&mut self) {
        if self.held.count > 0 {
            self.output.push(self.held.bits as u8);
        }
        self.held = Held::default();
    }

    /// Appends whole bytes; the writer has to be aligned.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        debug_assert_eq!(self.held.count, 0);
        self.output.extend_from_slice(bytes);
    }
}

/// Room for an announced number of bits.
#[derive(Debug)]
pub(crate) struct Room<'a> {
    bytes: &'a mut [u8],
    written: usize,
    held: Held,
}

impl Room<'_> {
    /// Takes `count` bits, all above them zero. At most 56 may be taken between two calls of
    /// [`Self::flush`], which leaves up to seven behind.
    #[inline(always)]
    pub(crate) fn put(&mut self, bits: u64, count: u32) {
        debug_assert!(self.held.count + count < 64 && bits >> count == 0);
        self.held.bits |= bits << self.held.count;
        self.held.count += count;
    }

    /// Writes the whole bytes among the bits taken.
    #[inline(always)]
    pub(crate) fn flush(&mut self) {
        let word = self.held.bits.to_le_bytes();
        self.bytes[self.written..self.written + SLACK].copy_from_slice(&word);
        self.written += (self.held.count / 8) as usize;
        self.held.bits >>= self.held.count & !7;
        self.held.count &= 7;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_come_lowest_first() {
        let mut bytes = vec![9];
        let mut writer = BitWriter::new(&mut bytes);
        writer.with_room(3, |room| room.put(0b101, 3));
        writer.with_room(60, |room| {
            room.put(0b01, 2);
            room.flush();
            room.put(0x12_3456_789a_bcde, 56);
            room.flush();
            room.put(0b11, 2);
        });
        writer.align();
        writer.align();
        writer.bytes(&[7]);
        let bits = 0b101_u64 | 0b01 << 3 | 0x12_3456_789a_bcde << 5 | 0b11 << 61;
        assert_eq!(bytes, [&[9][..], &bits.to_le_bytes(), &[7]].concat());
    }
}
