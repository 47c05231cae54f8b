import { X509Certificate } from 'node:crypto';
import { existsSync } from 'node:fs';
import { dirname } from 'node:path';
import { ConfigError } from '../shared/config-file.ts';
import type { Finding } from '../shared/doctor.ts';
import { findingLines, findingsJson, isFit } from '../shared/doctor.ts';
import { toAppError } from '../shared/errors.ts';
import { EXIT } from '../shared/exit-codes.ts';
import { typedFlags } from '../shared/typed.ts';
import { readClientFiles } from './cli/client-files.ts';
import type { HostFact, LaptopFacts } from './cli/laptop-checks.ts';
import { laptopFindings } from './cli/laptop-checks.ts';
import { openScreen } from './cli/screen.ts';
import { clientPlaces, colourWish } from './config.ts';
import type { HostConfig, HostView } from './fleet/host-view.ts';
import { roomProblem } from './output/disk-room.ts';
import { findRoots, outputDirectory } from './output/roots.ts';
import { Session } from './session.ts';
import type { SessionFlags } from './session.ts';
import { packageVersion } from './version.ts';

const DAY_MS = 86_400_000;
/** Room for a picture of any size; a batch asks for what it needs itself. */
const ROOM_BYTES = 200 * 1024 ** 2;

/** `gantry doctor`: what keeps this laptop from its hosts, also where the configuration cannot be used at all. */
export async function runDoctor(flags: SessionFlags): Promise<number> {
  const { out, isJson } = openScreen(flags, colourWish());
  const findings = laptopFindings(await gather(flags));
  out.write(isJson ? findingsJson(findings, packageVersion) : `${painted(findings, out.paint).join('\n')}\n`);
  return isFit(findings) ? EXIT.ok : EXIT.failed;
}

function painted(findings: readonly Finding[], paint: (style: 'good' | 'bad', text: string) => string): string[] {
  return findings.flatMap((finding) => {
    const [line = '', ...hints] = findingLines([finding]);
    const style = finding.status === 'ok' ? 'good' : finding.status === 'problem' ? 'bad' : undefined;
    return [style === undefined ? line : line.replace(finding.status, paint(style, finding.status)), ...hints];
  });
}

async function gather(flags: SessionFlags): Promise<LaptopFacts> {
  const own = {
    flags: typedFlags({ config: flags.config }, process.platform),
    nodeVersion: process.versions.node,
    today: new Date().toISOString().slice(0, 10),
    ownVersion: packageVersion,
    ...readClientFiles(clientPlaces(), process.cwd()),
  };
  try {
    await using session = new Session(flags);
    const { file, expectedFile, hosts } = session.config;
    const views = hosts.length === 0 ? [] : (await session.hosts()).hosts();
    return {
      ...own,
      config: { file, expectedFile, problems: [] },
      hosts: views.map((view) => hostFact(view, hosts)),
      output: await outputFact(session),
    };
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    const config = { file: undefined, expectedFile: 'bridge.yaml', problems: error.problems, mend: error.mend };
    return { ...own, config, hosts: [], output: undefined };
  }
}

function hostFact({ name, url, link, snapshot }: HostView, configs: readonly HostConfig[]): HostFact {
  const tls = configs.find((config) => config.name === name)?.tls;
  return {
    ...{ name, url },
    isPinned: tls !== undefined,
    expiresInDays: tls && daysLeft(tls.ca),
    link: link.kind === 'down' ? { kind: 'down', code: link.error.code, message: link.error.message } : link,
    version: snapshot?.agentVersion,
    problems: snapshot?.problems ?? [],
    models: (snapshot?.models ?? []).map(({ alias, model }) => ({ alias, id: model })),
  };
}

function daysLeft(pem: string): number | undefined {
  try {
    return Math.floor((Date.parse(new X509Certificate(pem).validTo) - Date.now()) / DAY_MS);
  } catch {
    return undefined; // the link says what is wrong with it
  }
}

/** Where images go that nobody gave a place. A file is made there and deleted, which alone is a proof. */
async function outputFact({ config }: Session): Promise<LaptopFacts['output']> {
  const { home, cwd, roots: configured, outputDir } = config;
  try {
    const roots = await findRoots({ home, cwd, configured, outputDir });
    const directory = await outputDirectory({ asked: undefined, configured: outputDir, roots });
    return { directory, problem: await whyNot(directory) };
  } catch (error) {
    return { directory: outputDir ?? cwd, problem: toAppError(error).message };
  }
}

/** Looked at where it will be made: a doctor leaves no directory behind. */
async function whyNot(directory: string): Promise<string | undefined> {
  let existing = directory;
  while (!existsSync(existing)) existing = dirname(existing);
  return (await roomProblem(existing, ROOM_BYTES))?.what;
}
