/** One line of the benchmark's table. Timings are measured in this run; `ratio` is against `reference`, taken in the same run. */
export type BenchRow = {
  /** Of the target: B1, H3, M5 ...; a part of one has a suffix, as in `B1 uniform40`. */
  id: string;
  name: string;
  /** The figure itself, in `unit`; null where it was not run. */
  value: number | null;
  unit: string;
  /** `value` over the reference's; null where the gate is absolute or there is no reference. */
  ratio: number | null;
  /** What it is compared with, with its figure, for a person. */
  reference: string;
  /** As in `<= 1.03 x`; empty for a line that only informs. */
  gate: string;
  /** null: informs only, or was not run. */
  pass: boolean | null;
  /** Why it was not run and how to change that, or what one should know. */
  note?: string;
};

/** Rows that are measured together, because they share a set-up or are each other's reference. */
export type BenchPart = {
  /** Targets it measures: `--only B1` runs the parts that name it. */
  ids: readonly string[];
  title: string;
  run: (stage: BenchStage) => Promise<BenchRow[]>;
};

export type BenchStage = {
  /** A directory of its own, deleted afterwards. */
  directory: string;
  /** One short line about what happens, for a person who waits. */
  say: (text: string) => void;
  signal: AbortSignal;
};

/** A row whose gate is `ratio <= most`. */
export function ratioRow(row: {
  id: string;
  name: string;
  value: number;
  unit: string;
  reference: { name: string; value: number };
  most: number | null;
  note?: string;
}): BenchRow {
  const { reference, most, ...rest } = row;
  const ratio = row.value / reference.value;
  return {
    ...rest,
    ratio,
    reference: `${reference.name}: ${figure(reference.value)} ${row.unit}`,
    gate: most === null ? '' : `<= ${most.toFixed(2)} x`,
    pass: most === null ? null : ratio <= most,
  };
}

/** A row whose gate is `value <= most`, in the unit of the value. */
export function absoluteRow(row: {
  id: string;
  name: string;
  value: number;
  unit: string;
  reference: string;
  most: number | null;
  note?: string;
}): BenchRow {
  const { most, ...rest } = row;
  return {
    ...rest,
    ratio: null,
    gate: most === null ? '' : `<= ${most} ${row.unit}`,
    pass: most === null ? null : row.value <= most,
  };
}

/** What could not be measured here: never passed, never failed. */
export function notRun(row: {
  id: string;
  name: string;
  unit: string;
  reference: string;
  gate: string;
  note: string;
}): BenchRow {
  return { ...row, value: null, ratio: null, pass: null };
}

/** Three significant digits, no exponent. */
export function figure(value: number): string {
  return Number(value.toPrecision(3)).toString();
}
