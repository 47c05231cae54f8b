// What others say about gantry's MCP server: the official conformance suite, the inspector, the SDK's next client, and the
// checks of the two packages. Everything is downloaded for the run, so this is no part of `npm test`.
import { buildConformanceServer } from './judge/conformance-server.mjs';
import { CONFORMANCE } from './judge/conformance.ts';
import { driveNextClient } from './judge/client2.ts';
import { inspect } from './judge/inspector.ts';
import { JudgedBridge } from './judge/judged-bridge.ts';
import { NotRun } from './judge/npx.ts';
import { judgeMcpb, judgeServerJson } from './judge/packaging.ts';
import type { Finding, Verdict } from './judge/verdict.ts';
import { isGreen, tableOf } from './judge/verdict.ts';

await buildConformanceServer();
await using bridge = await JudgedBridge.start();

const JUDGES: { name: string; run: () => Promise<Finding[]> }[] = [
  ...CONFORMANCE,
  { name: 'inspector 2.12.0', run: () => inspect(bridge) },
  { name: 'client 2.4.0', run: () => driveNextClient(bridge) },
  { name: 'mcpb 2.1.2', run: () => judgeMcpb(bridge.directory) },
  { name: 'ajv', run: () => judgeServerJson() },
];

const asked = process.argv.slice(2);
const verdicts: Verdict[] = [];
for (const { name, run } of JUDGES) {
  if (asked.length > 0 && !asked.some((part) => name.includes(part))) continue;
  process.stderr.write(`${name} ...\n`);
  verdicts.push(...(await heard(name, run)));
}
process.stdout.write(`${tableOf(verdicts)}\n`);
process.exitCode = verdicts.length > 0 && verdicts.every(isGreen) ? 0 : 1;

async function heard(judge: string, run: () => Promise<Finding[]>): Promise<Verdict[]> {
  try {
    return (await run()).map((finding) => ({ judge, isRun: true, note: '', ...finding }));
  } catch (error) {
    const note = error instanceof Error ? error.message : String(error);
    const isRun = !(error instanceof NotRun);
    return [{ judge, what: '', passed: 0, failed: isRun ? 1 : 0, isRun, note }];
  }
}
