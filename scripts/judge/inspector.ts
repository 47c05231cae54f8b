import { z } from 'zod';
import type { JudgedBridge } from './judged-bridge.ts';
import type { Ran } from './npx.ts';
import { npx } from './npx.ts';
import type { Finding } from './verdict.ts';

const INSPECTOR = '@modelcontextprotocol/inspector@2.12.0';
const LOAD = { requests: 200, atOnce: 10 };

const Listed = z.object({ result: z.object({ tools: z.array(z.unknown()) }) });
const Load = z.object({
  requests: z.number(),
  ok: z.number(),
  latencyMs: z.object({ p50: z.number(), p99: z.number() }),
});

/** The inspector's command line, against the built bridge with one simulated host. */
export async function inspect(bridge: JudgedBridge): Promise<Finding[]> {
  const ask = (args: readonly string[]): Promise<Ran> =>
    npx([INSPECTOR], ['mcp-inspector', '--cli', ...bridge.command, ...args], { env: bridge.env });
  return [
    strictList(await ask(['--method', 'tools/list', '--strict', '--format', 'json'])),
    answered('tools/call server_health', await ask(['--method', 'tools/call', '--tool-name', 'server_health'])),
    load(
      await ask([
        ...['--method', 'tools/call', '--tool-name', 'gpu_status', '--load'],
        ...['--load-requests', String(LOAD.requests), '--load-concurrency', String(LOAD.atOnce)],
      ]),
    ),
    answered('tools/list, era auto', await ask(['--protocol-era', 'auto', '--method', 'tools/list'])),
    answered('resources/list', await ask(['--method', 'resources/list'])),
    answered('prompts/list', await ask(['--method', 'prompts/list'])),
  ];
}

/** Its report is on stderr; what it only warns of is portable to fewer clients, and counts here. */
function strictList({ code, stdout, stderr }: Ran): Finding {
  const what = 'tools/list --strict';
  if (code !== 0 || stderr.trim() !== '') return { what, passed: 0, failed: 1, note: `exit ${code}: ${brief(stderr)}` };
  return { what, passed: Listed.parse(JSON.parse(stdout)).result.tools.length, failed: 0, note: 'tools, no warning' };
}

function answered(what: string, { code, stderr }: Ran): Finding {
  return code === 0 ? { what, passed: 1, failed: 0 } : { what, passed: 0, failed: 1, note: brief(stderr) };
}

function load({ code, stdout, stderr }: Ran): Finding {
  const what = `gpu_status x ${LOAD.requests}, ${LOAD.atOnce} at once`;
  if (code !== 0) return { what, passed: 0, failed: LOAD.requests, note: brief(stderr) };
  const { requests, ok, latencyMs } = Load.parse(JSON.parse(stdout));
  const note = `p50 ${latencyMs.p50.toFixed(1)} ms, p99 ${latencyMs.p99.toFixed(1)} ms`;
  return { what, passed: ok, failed: requests - ok, note };
}

function brief(text: string): string {
  return text.trim().replaceAll(/\s+/g, ' ').slice(0, 200);
}
