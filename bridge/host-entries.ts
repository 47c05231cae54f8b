import { readFileSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { ConfigError } from '../shared/config-file.ts';
import { SERVER_NAME } from '../shared/limits.ts';
import type { HostConfig } from './fleet/host-view.ts';

type Entry = { name: string; url: string; token: string; certificate?: string | undefined };

/** The hosts of bridge.yaml with their certificates read, wherever they are. `file` is what their paths are relative to. */
export function hostConfigs(entries: readonly Entry[], file: string): HostConfig[] {
  const problems: string[] = [];
  const hosts = entries.map(({ certificate, ...host }, index): HostConfig => {
    if (certificate === undefined) return host;
    const ca = pemOf(certificate, file);
    const isPlain = host.url.startsWith('ws:');
    if (isPlain) problems.push(`hosts[${index}].certificate: only with wss://, and ${host.name} has ws://`);
    else if (ca === undefined) problems.push(`hosts[${index}].certificate: neither a PEM text nor a file with one`);
    return ca === undefined ? host : { ...host, tls: { ca, servername: SERVER_NAME } };
  });
  if (problems.length > 0) throw new ConfigError(problems);
  return hosts;
}

function pemOf(certificate: string, file: string): string | undefined {
  const text = certificate.includes('-----BEGIN') ? certificate : read(resolve(dirname(file), certificate));
  return text?.includes('-----BEGIN CERTIFICATE-----') === true ? text : undefined;
}

function read(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return undefined; // said by the caller, with the key that names it
  }
}
