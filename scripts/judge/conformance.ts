import { execa } from 'execa';
import { createInterface } from 'node:readline';
import { resolve } from 'node:path';
import type { Ran } from './npx.ts';
import { npx } from './npx.ts';
import type { Finding } from './verdict.ts';

const SUITE = '@modelcontextprotocol/conformance';
const BASELINE = ['--expected-failures', resolve('conformance-baseline.yml')];
/** For the releases that ask for more than Node 20. */
const NODE_22 = 'node@22';

/** The official suite, against gantry's MCP server with fixtures, through the relay that speaks HTTP with it. */
export const CONFORMANCE: { name: string; run: () => Promise<Finding[]> }[] = [
  { name: 'conformance 0.1.13', run: () => judged('0.1.13', { what: 'all scenarios, Node 20' }) },
  { name: 'conformance 0.1.16', run: () => judged('0.1.16', { what: 'all scenarios, Node 22', node: NODE_22 }) },
  {
    name: 'conformance 0.2.0-alpha.12',
    run: () =>
      judged('0.2.0-alpha.12', {
        what: 'requirements 2025-11-25, every message by its schema',
        node: NODE_22,
        more: ['--requirements', '2025-11-25'],
      }),
  },
];

async function judged(
  version: string,
  { what, node, more = [] }: { what: string; node?: string; more?: readonly string[] },
): Promise<Finding[]> {
  await using relay = await Relay.start();
  const packages = [...(node === undefined ? [] : [node]), `${SUITE}@${version}`];
  const ran = await npx(packages, ['conformance', 'server', '--url', relay.url, ...BASELINE, ...more]);
  return [{ what, ...totalOf(ran) }];
}

function totalOf({ code, stdout, stderr }: Ran): { passed: number; failed: number; note: string } {
  const [, passed, failed] = /^Total: (\d+) passed, (\d+) failed/m.exec(stdout) ?? [];
  if (passed === undefined) throw new Error(`no total in its output: ${(stderr || stdout).trim().slice(-300)}`);
  const bad = [...stdout.matchAll(/^✗ ([\w-]+):/gm)].map(([, name]) => name).join(', ');
  // Its exit code knows more than its total: a line of the baseline that no longer fails is a failure, too.
  const isBad = code !== 0 && Number(failed) === 0;
  return { passed: Number(passed), failed: Number(failed) + (isBad ? 1 : 0), note: isBad ? `exit code ${code}` : bad };
}

/** The relay as a process, on a port of its own; each session it opens is one conformance server. */
class Relay implements AsyncDisposable {
  readonly url: string;
  readonly #process: ReturnType<typeof startRelay>;

  private constructor(process: ReturnType<typeof startRelay>, url: string) {
    this.#process = process;
    this.url = url;
  }

  static async start(): Promise<Relay> {
    const relay = startRelay();
    for await (const line of createInterface({ input: relay.stdout })) return new Relay(relay, line);
    throw new Error('the relay ended at once');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.stdin.end();
    await this.#process;
  }
}

function startRelay() {
  const command = ['tests/conformance/relay.mjs', '0', process.execPath, 'dist/conformance-server.cjs'];
  return execa(process.execPath, command, {
    stdin: 'pipe',
    stdout: 'pipe',
    stderr: 'inherit',
    buffer: false,
    reject: false,
    forceKillAfterDelay: 5_000,
  });
}
