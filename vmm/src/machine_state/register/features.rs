//! The ID registers of AArch64 and their fields, four bits each (ARM DDI 0487, section D24.2).

use super::{Feature, RegisterId};

/// One ID register.
pub(super) struct IdRegister {
    pub id: RegisterId,
    pub name: &'static str,
    /// Lowest bit and name of each; none where the register is one number.
    pub fields: &'static [(u32, &'static str)],
}

impl IdRegister {
    pub(super) fn features(&self, value: u64) -> Vec<Feature> {
        let feature = |(bit, field): &(u32, &str)| {
            let value = value >> bit & 0xf;
            let is_signed = SIGNED.contains(&(self.name, *field));
            Feature {
                name: format!("{}.{field}", self.name),
                value: if is_signed { (value + 1) & 0xf } else { value },
                grows: !NOT_ORDERED.contains(&(self.name, *field)),
            }
        };
        self.fields.iter().map(feature).collect()
    }
}

/// Fields in which all ones say "not there" and zero is something.
const SIGNED: [(&str, &str); 4] = [
    ("ID_AA64PFR0_EL1", "FP"),
    ("ID_AA64PFR0_EL1", "AdvSIMD"),
    ("ID_AA64MMFR0_EL1", "TGran4"),
    ("ID_AA64MMFR0_EL1", "TGran64"),
];

/// Fields whose larger values do not include the smaller ones.
const NOT_ORDERED: [(&str, &str); 9] = [
    ("ID_AA64DFR0_EL1", "BRPs"),
    ("ID_AA64DFR0_EL1", "WRPs"),
    ("ID_AA64DFR0_EL1", "CTX_CMPs"),
    ("ID_AA64DFR0_EL1", "DebugVer"),
    ("ID_AA64DFR0_EL1", "PMUVer"),
    ("ID_AA64ISAR1_EL1", "APA"),
    ("ID_AA64ISAR1_EL1", "API"),
    ("ID_AA64ISAR2_EL1", "APA3"),
    ("ID_AA64PFR0_EL1", "GIC"),
];

const fn id(op1: u64, crm: u64, op2: u64) -> RegisterId {
    RegisterId::system(3, op1, 0, crm, op2)
}

pub(super) const ID_REGISTERS: &[IdRegister] = &[
    IdRegister { id: id(0, 0, 0), name: "MIDR_EL1", fields: &[] },
    IdRegister { id: id(0, 0, 5), name: "MPIDR_EL1", fields: &[] },
    IdRegister { id: id(0, 0, 6), name: "REVIDR_EL1", fields: &[] },
    IdRegister { id: id(1, 0, 1), name: "CLIDR_EL1", fields: &[] },
    IdRegister { id: id(1, 0, 7), name: "AIDR_EL1", fields: &[] },
    IdRegister { id: id(3, 0, 1), name: "CTR_EL0", fields: &[] },
    IdRegister {
        id: id(0, 4, 0),
        name: "ID_AA64PFR0_EL1",
        fields: &[
            (0, "EL0"),
            (4, "EL1"),
            (8, "EL2"),
            (12, "EL3"),
            (16, "FP"),
            (20, "AdvSIMD"),
            (24, "GIC"),
            (28, "RAS"),
            (32, "SVE"),
            (36, "SEL2"),
            (40, "MPAM"),
            (44, "AMU"),
            (48, "DIT"),
            (52, "RME"),
            (56, "CSV2"),
            (60, "CSV3"),
        ],
    },
    IdRegister {
        id: id(0, 4, 1),
        name: "ID_AA64PFR1_EL1",
        fields: &[
            (0, "BT"),
            (4, "SSBS"),
            (8, "MTE"),
            (12, "RAS_frac"),
            (16, "MPAM_frac"),
            (24, "SME"),
            (28, "RNDR_trap"),
            (32, "CSV2_frac"),
            (36, "NMI"),
            (40, "MTE_frac"),
            (44, "GCS"),
            (48, "THE"),
            (52, "MTEX"),
            (56, "DF2"),
            (60, "PFAR"),
        ],
    },
    IdRegister {
        id: id(0, 4, 4),
        name: "ID_AA64ZFR0_EL1",
        fields: &[
            (0, "SVEver"),
            (4, "AES"),
            (16, "BitPerm"),
            (20, "BF16"),
            (24, "B16B16"),
            (32, "SHA3"),
            (40, "SM4"),
            (44, "I8MM"),
            (52, "F32MM"),
            (56, "F64MM"),
        ],
    },
    IdRegister {
        id: id(0, 5, 0),
        name: "ID_AA64DFR0_EL1",
        fields: &[
            (0, "DebugVer"),
            (4, "TraceVer"),
            (8, "PMUVer"),
            (12, "BRPs"),
            (20, "WRPs"),
            (28, "CTX_CMPs"),
            (32, "PMSVer"),
            (36, "DoubleLock"),
            (40, "TraceFilt"),
        ],
    },
    IdRegister {
        id: id(0, 6, 0),
        name: "ID_AA64ISAR0_EL1",
        fields: &[
            (4, "AES"),
            (8, "SHA1"),
            (12, "SHA2"),
            (16, "CRC32"),
            (20, "Atomic"),
            (24, "TME"),
            (28, "RDM"),
            (32, "SHA3"),
            (36, "SM3"),
            (40, "SM4"),
            (44, "DP"),
            (48, "FHM"),
            (52, "TS"),
            (56, "TLB"),
            (60, "RNDR"),
        ],
    },
    IdRegister {
        id: id(0, 6, 1),
        name: "ID_AA64ISAR1_EL1",
        fields: &[
            (0, "DPB"),
            (4, "APA"),
            (8, "API"),
            (12, "JSCVT"),
            (16, "FCMA"),
            (20, "LRCPC"),
            (24, "GPA"),
            (28, "GPI"),
            (32, "FRINTTS"),
            (36, "SB"),
            (40, "SPECRES"),
            (44, "BF16"),
            (48, "DGH"),
            (52, "I8MM"),
            (56, "XS"),
            (60, "LS64"),
        ],
    },
    IdRegister {
        id: id(0, 6, 2),
        name: "ID_AA64ISAR2_EL1",
        fields: &[
            (0, "WFxT"),
            (4, "RPRES"),
            (8, "GPA3"),
            (12, "APA3"),
            (16, "MOPS"),
            (20, "BC"),
            (24, "PAC_frac"),
            (28, "CLRBHB"),
            (52, "CSSC"),
        ],
    },
    IdRegister {
        id: id(0, 7, 0),
        name: "ID_AA64MMFR0_EL1",
        fields: &[
            (0, "PARange"),
            (4, "ASIDBits"),
            (8, "BigEnd"),
            (12, "SNSMem"),
            (16, "BigEndEL0"),
            (20, "TGran16"),
            (24, "TGran64"),
            (28, "TGran4"),
            (44, "ExS"),
            (56, "FGT"),
            (60, "ECV"),
        ],
    },
    IdRegister {
        id: id(0, 7, 1),
        name: "ID_AA64MMFR1_EL1",
        fields: &[
            (0, "HAFDBS"),
            (4, "VMIDBits"),
            (8, "VH"),
            (12, "HPDS"),
            (16, "LO"),
            (20, "PAN"),
            (24, "SpecSEI"),
            (28, "XNX"),
            (32, "TWED"),
            (36, "ETS"),
            (40, "HCX"),
            (44, "AFP"),
            (48, "nTLBPA"),
            (52, "TIDCP1"),
            (56, "CMOW"),
        ],
    },
    IdRegister {
        id: id(0, 7, 2),
        name: "ID_AA64MMFR2_EL1",
        fields: &[
            (0, "CnP"),
            (4, "UAO"),
            (8, "LSM"),
            (12, "IESB"),
            (16, "VARange"),
            (20, "CCIDX"),
            (24, "NV"),
            (28, "ST"),
            (32, "AT"),
            (36, "IDS"),
            (40, "FWB"),
            (48, "TTL"),
            (52, "BBM"),
            (56, "EVT"),
            (60, "E0PD"),
        ],
    },
];
