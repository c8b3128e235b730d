"""What sentences of indirect object identification are made from: frames, names, places and things."""

from __future__ import annotations

FRAMES = (
    "After {first} and {second} met at the {place}, {subject} handed the {thing} to",
    "While {first} and {second} were waiting at the {place}, {subject} passed the {thing} to",
    "When {first} and {second} came home from the {place}, {subject} showed the {thing} to",
    "Last week {first} and {second} walked to the {place}, and {subject} gave the {thing} to",
    "As soon as {first} and {second} reached the {place}, {subject} threw the {thing} to",
    "Because {first} and {second} had to leave the {place}, {subject} returned the {thing} to",
    "On the way to the {place}, {first} and {second} stopped, and {subject} sold the {thing} to",
    "Once {first} and {second} had found the {place}, {subject} lent the {thing} to",
    "Before {first} and {second} left the {place}, {subject} offered the {thing} to",
    "It was late when {first} and {second} got to the {place}. {subject} brought the {thing} to",
    "Yesterday {first} and {second} had an argument at the {place}. {subject} sent the {thing} to",
    "There was nobody but {first} and {second} in the {place}. {subject} decided to give the {thing} to",
    "All morning {first} and {second} worked at the {place}. Then {subject} carried the {thing} to",
    "My friends {first} and {second} spent the day at the {place}, where {subject} gave the {thing} to",
    "The two of them, {first} and {second}, were at the {place} when {subject} promised the {thing} to",
)
"""Each makes two sentences: the one who is given the thing is named first, or second."""

NAMES = (
    "Adam", "Alan", "Albert", "Alex", "Alice", "Amy", "Andrew", "Angela", "Anna", "Anne", "Anthony", "Arthur",
    "Barbara", "Ben", "Betty", "Bill", "Bob", "Brian", "Carl", "Carol", "Charles", "Chris", "Claire", "Daniel",
    "David", "Diana", "Donald", "Dorothy", "Edward", "Elizabeth", "Emily", "Emma", "Eric", "Eva", "Frank", "Fred",
    "George", "Grace", "Harry", "Helen", "Henry", "Howard", "Ian", "Jack", "Jacob", "James", "Jane", "Jason",
    "Jean", "Jennifer", "Jim", "Joe", "John", "Jonathan", "Joseph", "Julia", "Karen", "Kate", "Kevin", "Laura",
    "Lewis", "Linda", "Lisa", "Louis", "Lucy", "Margaret", "Maria", "Mark", "Martin", "Mary", "Matthew", "Michael",
    "Michelle", "Mike", "Nancy", "Nick", "Oliver", "Patrick", "Paul", "Peter", "Philip", "Rachel", "Ralph",
    "Richard", "Robert", "Roger", "Ruth", "Sam", "Samuel", "Sarah", "Scott", "Simon", "Sophie", "Stephen",
    "Steve", "Susan", "Thomas", "Tim", "Tom", "Victoria", "Walter", "William",
)  # fmt: skip
PLACES = (
    "airport", "beach", "bridge", "cafe", "farm", "garden", "hospital", "hotel", "lake", "library", "market",
    "museum", "office", "park", "restaurant", "school", "station", "store", "theater", "village",
)  # fmt: skip
THINGS = (
    "bag", "ball", "basket", "book", "bottle", "box", "camera", "card", "coat", "cup", "drink", "guitar", "hat",
    "key", "lamp", "letter", "map", "newspaper", "ring", "ticket", "watch",
)  # fmt: skip
