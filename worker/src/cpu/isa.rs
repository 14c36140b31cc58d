//! Which instructions the kernels may use, found at start-up and not by the build.

/// An instruction set with kernels of its own. A value of it is a proof: an `Isa` exists only
/// where [`Isa::available`] found the processor able to run it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Whatever the build targets.
    Portable,
    /// AVX2 with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// The same with products of bf16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// The same with AMX: tiles of bf16 and of bytes.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// NEON.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// NEON with dot products of bytes.
    #[cfg(target_arch = "aarch64")]
    NeonDotprod,
}

impl Isa {
    /// Returns every set that this processor runs, the best one first.
    pub fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma") && has!("f16c");
            let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512dq");
            if avx2 && avx512 && has!("avx512vl") && has!("avx512vnni") {
                if has!("avx512bf16") {
                    if super::amx::is_usable() {
                        found.push(Self(Kind::Amx));
                    }
                    found.push(Self(Kind::Avx512Bf16));
                }
                found.push(Self(Kind::Avx512));
            }
            if avx2 {
                found.push(Self(Kind::Avx2));
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            use std::arch::is_aarch64_feature_detected as has;
            if has!("neon") && has!("dotprod") {
                found.push(Self(Kind::NeonDotprod));
            }
            if has!("neon") {
                found.push(Self(Kind::Neon));
            }
        }
        found.push(Self(Kind::Portable));
        found
    }

    /// Returns the best set that this processor runs.
    pub fn best() -> Self {
        Self::available()[0]
    }

    /// Returns the name that logs have.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "AVX-512 VNNI",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Bf16 => "AVX-512 VNNI, BF16",
            #[cfg(target_arch = "x86_64")]
            Kind::Amx => "AVX-512 VNNI, BF16, AMX",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => "NEON",
            #[cfg(target_arch = "aarch64")]
            Kind::NeonDotprod => "NEON, dot products",
        }
    }

    /// Are bf16 weights multiplied with activations rounded to bf16, and not with floats?
    pub(super) fn multiplies_bf16(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return matches!(self.0, Kind::Avx512Bf16 | Kind::Amx);
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Has it got instructions that multiply whole tiles?
    pub(super) fn has_tiles(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.0 == Kind::Amx;
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Returns the set whose results all are the same as this one's, where no weights are bf16.
    pub fn without_bf16(self) -> Self {
        #[cfg(target_arch = "x86_64")]
        if self.multiplies_bf16() {
            return Self(Kind::Avx512);
        }
        self
    }

    pub(super) fn kind(self) -> Kind {
        self.0
    }
}

/// Does the processor fetch what a loop reads in order as early as it could be told to? AMD's do:
/// there, telling them costs a sixth of the speed of one row on one thread. Intel's stay behind: one
/// row of a model is 1.6 times as fast on one thread, and 1.8 times on two, if they are told.
#[cfg(target_arch = "x86_64")]
pub(super) fn fetches_by_itself() -> bool {
    use std::arch::x86_64::__cpuid;
    use std::sync::LazyLock;
    static IS_INTEL: LazyLock<bool> = LazyLock::new(|| {
        let vendor = __cpuid(0);
        [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel"
    });
    !*IS_INTEL
}

/// Compiles a safe kernel once for each instruction set and calls the right one.
///
/// The kernel is generic over `const FMA: bool`: whether fused multiply-add is one instruction.
macro_rules! dispatched {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) = $body:ident) => {
        $(#[$doc])*
        #[cfg_attr(
            target_arch = "x86_64",
            expect(unsafe_code, reason = "calls into functions that need checked CPU features")
        )]
        $vis fn $name(isa: crate::cpu::Isa, $($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($arg: $type),*) {
                    $body::<true>($($arg),*);
                }
                #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($($arg: $type),*) {
                    $body::<true>($($arg),*);
                }
                match isa.kind() {
                    crate::cpu::isa::Kind::Portable => {}
                    crate::cpu::isa::Kind::Avx2 => {
                        // SAFETY: this `Isa` exists only where the features were detected.
                        return unsafe { avx2($($arg),*) };
                    }
                    crate::cpu::isa::Kind::Avx512
                    | crate::cpu::isa::Kind::Avx512Bf16
                    | crate::cpu::isa::Kind::Amx => {
                        // SAFETY: this `Isa` exists only where the features were detected.
                        return unsafe { avx512($($arg),*) };
                    }
                }
            }
            // The build for aarch64 has NEON, and with it fused multiply-add, everywhere.
            #[cfg(target_arch = "aarch64")]
            if isa.kind() != crate::cpu::isa::Kind::Portable {
                return $body::<true>($($arg),*);
            }
            let _ = isa;
            $body::<false>($($arg),*);
        }
    };
}

pub(super) use dispatched;
