//! A hash over everything that happened, so that two runs of one seed can be told to be the same.

/// FNV-1a, 64 bits.
#[derive(Clone, Debug)]
pub struct Trace(u64);

impl Default for Trace {
    fn default() -> Trace {
        Trace(0xcbf2_9ce4_8422_2325)
    }
}

impl Trace {
    pub fn add(&mut self, numbers: &[u64]) {
        for number in numbers {
            for byte in number.to_le_bytes() {
                self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
    }

    pub fn hash(&self) -> u64 {
        self.0
    }
}
