import { basename } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { ImageFormat } from '../../shared/job.ts';
import type { JobView } from '../fleet/batch-view.ts';
import { mimeOf } from '../images/renderer.ts';
import { isMade } from './answers.ts';
import type { ResourceLink } from './sdk.ts';
import { cleanText } from './text.ts';

/** The saved files as addresses, for clients that show them; only on request, because some drop the whole answer for them. */
export function resultLinks(jobs: readonly JobView[]): ResourceLink[] {
  return jobs.filter(isMade).map(({ filePath, result }) => fileLink(filePath, result));
}

/** One file, whoever made it. */
export function fileLink(path: string, { format, bytes }: { format: ImageFormat; bytes: number }): ResourceLink {
  return {
    type: 'resource_link',
    uri: pathToFileURL(path).href,
    name: cleanText(basename(path), 200),
    mimeType: mimeOf(format),
    size: bytes,
  };
}
