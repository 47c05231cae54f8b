import type { NamedStyle } from '../styles/style-book.ts';

/** PURE. The address of a style. */
export function styleJson(name: string): { name: string; uri: string } {
  return { name, uri: `style://${name}` };
}

/** One style of a list. */
export function listedStyle({ name, head, body, problem }: NamedStyle) {
  const { description, tags, aspect_ratio, quality, model } = head;
  return {
    ...styleJson(name),
    description: description ?? body.split('\n', 1)[0]?.slice(0, 200) ?? '',
    tags: tags ?? [],
    aspect_ratio,
    quality,
    model,
    problem,
  };
}
