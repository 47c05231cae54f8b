import { readFileSync } from 'node:fs';
import { join } from 'node:path';

/** The kinds of question; `loop` is --query-gpu with -l or -lms. */
export type Question = 'loop' | 'gpus' | 'apps' | 'xml' | 'list';

/**
 * What is wrong with the driver now, by the file `nvidia-smi.fault.json` in the ledger, which is read before every answer
 * and every tick of a loop. One that cannot be parsed counts as none, so write it by rename where that matters.
 *
 * | form | what happens |
 * | --- | --- |
 * | `{"mode":"hang"}` | silent until the file is gone; SIGTERM ends it |
 * | `{"mode":"hang","ignoresTerm":true}` | the same, and only SIGKILL ends it |
 * | `{"mode":"exit","code":9,"text":"…"}` | says that and exits so |
 * | `{"mode":"warn","code":14,"text":"WARNING: …"}` | the whole answer, the text, that exit code; a loop goes on |
 * | `{"mode":"garbage","bytes":4096}` | so many random bytes instead of an answer; a loop goes on |
 * | `{"mode":"silent"}` | exits 0 without a word |
 * | `{"mode":"half"}` | the first half of the answer, exit 0 |
 * | `{"mode":"cells","text":"[N/A]","fields":[…],"index":1}` | these cells of --query-gpu; without fields all but timestamp, index, uuid and name, without index every GPU |
 * | `{"mode":"lost","index":1}` | GPU 1 (or a list) fell off the bus: what includes it fails with 15, `-L` lists the others |
 *
 * `"only"` in each of them names the questions it is for, one or a list.
 */
export type Fault = { only?: Question | readonly Question[] } & (
  | { mode: 'hang'; ignoresTerm?: boolean }
  | { mode: 'exit'; code: number; text: string }
  | { mode: 'warn'; code: number; text: string }
  | { mode: 'garbage'; bytes: number }
  | { mode: 'silent' | 'half' }
  | { mode: 'cells'; text: string; fields?: readonly string[]; index?: number }
  | { mode: 'lost'; index: number | readonly number[] }
);

/** The fault for such a question; undefined where there is none. */
export function faultFor(question: Question, ledgerDir: string): Fault | undefined {
  let fault: Fault;
  try {
    fault = JSON.parse(readFileSync(join(ledgerDir, 'nvidia-smi.fault.json'), 'utf8')) as Fault; // `any` by its own type
  } catch {
    return undefined;
  }
  return fault.only === undefined || [fault.only].flat().includes(question) ? fault : undefined;
}

/** The same table of rows with the cells that the fault spoils. */
export function spoiled(
  text: string,
  { fault, names }: { fault: Fault | undefined; names: readonly string[] },
): string {
  if (fault?.mode !== 'cells') return text;
  const kept = ['timestamp', 'index', 'uuid', 'gpu_uuid', 'name', 'gpu_name'];
  return text
    .split('\n')
    .map((line) => {
      const cells = line.split(', ');
      if (cells.length !== names.length || line.startsWith(names.join(', '))) return line;
      if (fault.index !== undefined && cells[names.indexOf('index')] !== String(fault.index)) return line;
      const isHit = (name: string): boolean => fault.fields?.includes(name) ?? !kept.includes(name);
      return cells.map((cell, at) => (isHit(names[at] ?? '') ? fault.text : cell)).join(', ');
    })
    .join('\n');
}
