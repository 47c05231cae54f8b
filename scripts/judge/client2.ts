import { execa } from 'execa';
import { join, resolve } from 'node:path';
import { z } from 'zod';
import type { JudgedBridge } from './judged-bridge.ts';
import { install } from './npx.ts';
import type { Finding } from './verdict.ts';

const CLIENT = '@modelcontextprotocol/client@2.4.0';
const MODES = ['legacy', 'auto'];
const Checks = z.record(z.string(), z.boolean());

/** The SDK's next client. Installed for the judge alone: it would be a tenth of what contributors download. */
export async function driveNextClient(bridge: JudgedBridge): Promise<Finding[]> {
  const directory = join(bridge.directory, 'client');
  await install([CLIENT], directory);
  const findings: Finding[] = [];
  for (const mode of MODES) findings.push(await drive(bridge, { directory, mode }));
  return findings;
}

async function drive(bridge: JudgedBridge, o: { directory: string; mode: string }): Promise<Finding> {
  const args = [resolve('scripts/judge/next-client.mjs'), o.directory, o.mode, ...bridge.command];
  const { stdout, stderr, exitCode } = await execa(process.execPath, args, {
    env: bridge.env,
    reject: false,
    timeout: 120_000,
  });
  const what = `${o.mode}: list, call, progress, cancel`;
  if (exitCode !== 0) return { what, passed: 0, failed: 1, note: stderr.trim().slice(-200) };
  const checks = Object.entries(Checks.parse(JSON.parse(stdout)));
  const bad = checks.filter(([, isGood]) => !isGood).map(([name]) => name);
  return { what, passed: checks.length - bad.length, failed: bad.length, note: bad.join(', ') };
}
