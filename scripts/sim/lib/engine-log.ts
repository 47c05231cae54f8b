import { performance } from 'node:perf_hooks';

/** What the simulated vLLM-Omni writes on stderr: log lines with vLLM's prefix, and tqdm's bar. */
export class EngineLog {
  readonly #hasLines: boolean;
  readonly #hasBar: boolean;

  constructor({ hasLines, hasBar }: { hasLines: boolean; hasBar: boolean }) {
    this.#hasLines = hasLines;
    this.#hasBar = hasBar;
  }

  info(text: string): void {
    this.#line('INFO', text);
  }

  warning(text: string): void {
    this.#line('WARNING', text);
  }

  error(text: string): void {
    this.#line('ERROR', text);
  }

  /** Uvicorn's own lines carry no time. */
  plain(text: string): void {
    if (this.#hasLines) process.stderr.write(`(APIServer pid=${process.pid}) INFO:     ${text}\n`);
  }

  /** A new bar; call the result with each step, the last one ends the line. */
  bar(steps: number): (step: number) => void {
    const startedMs = performance.now();
    return (step) => {
      if (!this.#hasBar) return;
      process.stderr.write(`\r${barText(step, steps, performance.now() - startedMs)}${step === steps ? '\n' : ''}`);
    };
  }

  #line(level: string, text: string): void {
    if (!this.#hasLines) return;
    const at = new Date();
    const two = (part: number): string => String(part).padStart(2, '0');
    const stamp = `${two(at.getMonth() + 1)}-${two(at.getDate())} ${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
    process.stderr.write(`(APIServer pid=${process.pid}) ${level} ${stamp} ${text}\n`);
  }
}

/** Like ` 48%|████▊     | 24/50 [00:03<00:03,  7.73it/s]`. */
function barText(step: number, steps: number, elapsedMs: number): string {
  const eighths = Math.floor((step / steps) * 80);
  const part = ['', '▏', '▎', '▍', '▌', '▋', '▊', '▉'][eighths % 8] ?? '';
  const blocks = `${'█'.repeat(Math.floor(eighths / 8))}${part}`.padEnd(10);
  const rate = step === 0 ? '?it/s' : `${(step / (elapsedMs / 1000)).toFixed(2).padStart(5)}it/s`;
  const leftMs = step === 0 ? undefined : (elapsedMs / step) * (steps - step);
  const percent = String(Math.floor((step / steps) * 100)).padStart(3);
  return `${percent}%|${blocks}| ${step}/${steps} [${clock(elapsedMs)}<${leftMs === undefined ? '?' : clock(leftMs)}, ${rate}]`;
}

function clock(ms: number): string {
  const seconds = Math.floor(ms / 1000);
  return `${String(Math.floor(seconds / 60)).padStart(2, '0')}:${String(seconds % 60).padStart(2, '0')}`;
}
