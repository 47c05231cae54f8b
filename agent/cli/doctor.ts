import { execa } from 'execa';
import type { Finding } from '../../shared/doctor.ts';
import { findingLines, findingsJson, isFit } from '../../shared/doctor.ts';
import { EXIT } from '../../shared/exit-codes.ts';
import { hostFindings } from '../doctor/host-checks.ts';
import type { HostFacts } from '../doctor/host-facts.ts';

const FIX_MS = 60_000;

/** `gantry-agent doctor`: one line for each check. With `isFixing` what is safe is mended first. Returns the exit code. */
export async function doctor(
  gather: () => Promise<HostFacts>,
  o: { isJson: boolean; isFixing: boolean; write: (text: string) => void; say: (text: string) => void },
): Promise<number> {
  let facts = await gather();
  if (o.isFixing && (await fixed(hostFindings(facts), o.say))) facts = await gather();
  const findings = hostFindings(facts);
  o.write(o.isJson ? findingsJson(findings, facts.ownVersion) : `${findingLines(findings).join('\n')}\n`);
  return isFit(findings) ? EXIT.ok : EXIT.failed;
}

/** True where something was done. */
async function fixed(findings: readonly Finding[], say: (text: string) => void): Promise<boolean> {
  const fixes = findings.flatMap(({ fix }) => (fix === undefined ? [] : [fix]));
  for (const [program = '', ...args] of fixes) {
    say(`+ ${[program, ...args].join(' ')}\n`);
    const { failed, shortMessage } = await execa(program, args, {
      ...{ timeout: FIX_MS, killSignal: 'SIGKILL', reject: false, stdin: 'ignore' },
    });
    if (failed) say(`  ${shortMessage ?? 'it failed'}\n`);
  }
  return fixes.length > 0;
}
